//! Tables and JSON on standard output.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};
use std::io::Write;

/// A table with a heading; every column but the first is set to the right.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(heading.to_vec()).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Prints `text` with a line end. A reader that is gone has nothing left to read.
pub(crate) fn print(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints named figures: as JSON with the `details`, or as a table with the details above it.
pub(crate) fn print_result(json: bool, details: &[(&str, String)], figures: &[(String, f64)]) {
    if json {
        let mut object: Map<String, Value> =
            details.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        object.extend(figures.iter().map(|(name, value)| (name.clone(), json!(value))));
        return print(Value::Object(object));
    }
    let details = details.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]);
    let figures = figures.iter().map(|(name, value)| vec![name.clone(), format!("{value:.4}")]);
    print(table(&["", ""], &details.chain(figures).collect::<Vec<_>>()));
}
