//! The arrows of `ARCHITECTURE.md` are those of the manifests.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Who may name libtorch's bindings.
const NAMES_TCH: [&str; 6] = ["saddle", "actors", "training", "algorithms", "lm", "libtorch"];

fn short(name: &str) -> &str {
    name.strip_prefix("saddle-").unwrap_or(name)
}

/// What each crate may use, as the page says.
fn allowed(all: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
    let page = fs::read_to_string(format!("{ROOT}/ARCHITECTURE.md")).expect("the page is there");
    let words = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).filter(|word| *word != "src/").map(|word| short(word).to_owned()).collect()
    };
    let rows = page.lines().filter(|line| line.starts_with("| `saddle"));
    let cells = rows.map(|line| line.trim_matches('|').split('|').collect::<Vec<_>>());
    let mut table = BTreeMap::new();
    for cells in cells {
        let used: BTreeSet<String> = match cells[1].trim() {
            "all the others" => all.iter().filter(|name| *name != "saddle").cloned().collect(),
            _ => words(cells[1]).into_iter().collect(),
        };
        table.extend(words(cells[0]).into_iter().map(|name| (name, used.clone())));
    }
    table
}

#[test]
fn every_crate_uses_those_that_the_page_allows_it_and_no_other() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(ROOT)
        .output()
        .expect("cargo is there");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let all: BTreeSet<String> = packages.iter().map(|package| short(&name(package)).to_owned()).collect();
    let allowed = allowed(&all);
    assert_eq!(allowed.keys().cloned().collect::<BTreeSet<_>>(), all, "every crate has a row");
    for package in packages {
        let crate_name = short(&name(package)).to_owned();
        let used = package["dependencies"].as_array().expect("dependencies").iter().map(name);
        for dependency in used {
            let is_ours = dependency.starts_with("saddle");
            assert!(!is_ours || allowed[&crate_name].contains(short(&dependency)), "{crate_name} uses {dependency}");
            assert!(dependency != "tch" || NAMES_TCH.contains(&crate_name.as_str()), "{crate_name} names tch");
        }
    }
}
