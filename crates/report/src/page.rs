//! The page: its sections in reading order. First what came of it, then how, then by what means.

use std::fmt::Write;

use crate::answers::Answers;
use crate::html::{Escaped, MEMORY, escaped, number, table};
use crate::{ReportInput, curves, evaluation, figure, saddle, samples};

const STYLE: &str = include_str!("style.css");

pub(crate) fn render(input: &ReportInput) -> String {
    let answers = Answers::of(&input.responses, &input.before, &input.after);
    let title = Escaped(&input.title);
    let sections = [
        section("results", "Results", &results(input)),
        section("training", "Policy training", &training(input)),
        section("reward-and-cost", "Reward against cost", &evaluation::spread(input, &answers)),
        section("kinds", "By kind of prompt", &evaluation::means(input)),
        section("comparison", "Better or worse, safe or unsafe", &evaluation::comparison(input, &answers)),
        section("samples", "Answers side by side", &samples::samples(input, &answers)),
        section("provenance", "How this was made", &provenance(input)),
    ]
    .concat();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<h1>{title}</h1>\n<p class=\"subtitle\">{}</p>\n</header>\n\
         {sections}</main>\n</body>\n</html>\n",
        Escaped(&input.subtitle)
    )
}

fn section(id: &str, title: &str, body: &str) -> String {
    format!("<section id=\"{id}\">\n<h2>{title}</h2>\n{body}</section>\n")
}

pub(crate) fn absent(what: &str) -> String {
    format!("<p class=\"absent\">{what}</p>\n")
}

fn results(input: &ReportInput) -> String {
    let mut html = String::new();
    if input.summary.is_empty() {
        html.push_str(&absent("The run has no summary."));
    } else {
        let rows: Vec<Vec<String>> = input
            .summary
            .iter()
            .map(|row| {
                let note = format!("<span class=\"note\">{}</span>", Escaped(&row.note));
                vec![escaped(&row.label), escaped(&row.before), escaped(&row.after), note]
            })
            .collect();
        html.push_str(&table("headline", 1, &["", "Before", "After", ""], &rows));
    }
    if !input.stages.is_empty() {
        html.push_str("<h3>Stages before policy training</h3>\n<div class=\"stages\">\n");
        for stage in &input.stages {
            let rows: Vec<Vec<String>> =
                stage.table.iter().map(|(what, figure)| vec![escaped(what), escaped(figure)]).collect();
            let figures = table("stage", 1, &[], &rows);
            write!(html, "<div><h4>{}</h4>\n{figures}</div>\n", Escaped(&stage.name)).expect(MEMORY);
        }
        html.push_str("</div>\n");
    }
    html
}

fn training(input: &ReportInput) -> String {
    let held_out = curves::held_out(&input.evaluations, &input.constraint);
    let figures = curves::figures(&input.updates, &held_out, input.cost_limit);
    if figures.is_empty() {
        return absent("No policy update was recorded.");
    }
    let last = input.updates.last().map_or(0.0, |row| row.seconds);
    format!(
        "<p class=\"lead\">{} updates in {} s. {} The dashed line is the limit that the mean cost is \
         held to.</p>\n{}{}",
        input.updates.len(),
        number(last, 1),
        curves::reading(&input.updates),
        figure::grid(&figures),
        saddle::distance(&input.updates)
    )
}

fn provenance(input: &ReportInput) -> String {
    let machine = &input.machine;
    let memory = number(machine.memory_bytes as f64 / f64::from(1 << 30), 1);
    let facts = [
        ("Processor", machine.cpu_model.clone()),
        ("Cores", machine.cpu_cores.to_string()),
        ("Memory", format!("{memory} GiB")),
        ("System", format!("{} ({})", machine.operating_system, machine.architecture)),
        ("saddle", machine.saddle_version.clone()),
        ("libtorch", machine.libtorch_version.clone()),
    ];
    let rows: Vec<Vec<String>> = facts.iter().map(|(name, fact)| vec![(*name).to_owned(), escaped(fact)]).collect();
    let mut html = String::new();
    if !input.command.is_empty() {
        let command = Escaped(&input.command);
        writeln!(html, "<pre class=\"command\"><code>{command}</code></pre>").expect(MEMORY);
    }
    html.push_str(&table("machine", 2, &[], &rows));
    if !input.config_toml.is_empty() {
        write!(
            html,
            "<details>\n<summary>The resolved configuration</summary>\n<pre><code>{}</code></pre>\n</details>\n",
            Escaped(&input.config_toml)
        )
        .expect(MEMORY);
    }
    html
}
