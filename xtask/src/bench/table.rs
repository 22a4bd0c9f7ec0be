//! Samples, and the table that is made of them: median, least and most of each figure, in the order of first samples.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) figure: String,
    pub(super) value: f64,
    pub(super) unit: Unit,
    /// VM exits of all microVMs meanwhile, where they say something.
    pub(super) exits: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Unit {
    /// Of the deterministic clock: a million instructions.
    Milliseconds,
    /// Of the deterministic clock, an operation.
    Instructions,
    MiB,
}

/// A Markdown table.
pub(super) fn render(samples: &[Sample]) -> String {
    let mut figures: Vec<&str> = Vec::new();
    for sample in samples {
        if !figures.contains(&sample.figure.as_str()) {
            figures.push(&sample.figure);
        }
    }
    let mut table =
        String::from("| figure | median | least | most | unit | VM exits |\n|---|---|---|---|---|---|\n");
    for figure in figures {
        let of: Vec<_> = samples.iter().filter(|sample| sample.figure == figure).collect();
        let mut values: Vec<_> = of.iter().map(|sample| sample.value).collect();
        values.sort_by(f64::total_cmp);
        let mut exits: Vec<_> = of.iter().filter_map(|sample| sample.exits).collect();
        exits.sort_unstable();
        let unit = of[0].unit;
        let number = |value: f64| match unit {
            Unit::Milliseconds | Unit::MiB => format!("{value:.1}"),
            Unit::Instructions => format!("{value:.0}"),
        };
        let unit = match unit {
            Unit::Milliseconds => "ms",
            Unit::Instructions => "instructions",
            Unit::MiB => "MiB",
        };
        let exits = exits.get(exits.len() / 2).map(u64::to_string).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "| {figure} | {} | {} | {} | {unit} | {exits} |",
            number(values[values.len() / 2]),
            number(values[0]),
            number(values[values.len() - 1])
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_one_line_with_its_median() {
        let sample = |figure: &str, value, exits| Sample {
            figure: figure.into(),
            value,
            unit: Unit::Milliseconds,
            exits,
        };
        let samples = [
            sample("b", 3.0, Some(30)),
            sample("a", 1.0, None),
            sample("b", 1.0, Some(10)),
            sample("b", 2.0, Some(20)),
        ];
        let table = render(&samples);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[2..], ["| b | 2.0 | 1.0 | 3.0 | ms | 20 |", "| a | 1.0 | 1.0 | 1.0 | ms |  |"]);
    }
}
