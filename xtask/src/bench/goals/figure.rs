//! A figure with its goal and with what it is to be compared with.

use std::fmt::{self, Write as _};

use serde::{Serialize, Serializer};

/// What a figure should be, in its own unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Goal {
    /// No more.
    AtMost(f64),
    /// No less.
    AtLeast(f64),
    /// It is told, that is all.
    Told,
}

impl Goal {
    /// Whether a figure meets it; `None` where there is nothing to meet.
    fn met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtMost(most) => Some(value <= most),
            Self::AtLeast(least) => Some(value >= least),
            Self::Told => None,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(out, "≤ {most}"),
            Self::AtLeast(least) => write!(out, "≥ {least}"),
            Self::Told => write!(out, "–"),
        }
    }
}

impl Serialize for Goal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    /// Of what.
    what: String,
    goal: Goal,
    value: f64,
    unit: &'static str,
    /// What it is relative to, from the same run.
    beside: String,
}

impl Figure {
    pub(super) fn new(what: impl Into<String>, goal: Goal, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            goal,
            value,
            unit,
            beside: String::new(),
        }
    }

    /// With what the same run found for the comparison.
    #[must_use]
    pub(super) fn beside(mut self, text: impl Into<String>) -> Self {
        self.beside = text.into();
        self
    }

    /// The value with about three digits, and its unit.
    fn shown(&self) -> String {
        let digits = match self.value.abs() {
            value if value >= 100.0 || value.fract() == 0.0 => 0,
            value if value >= 10.0 => 1,
            value if value >= 1.0 => 2,
            value if value >= 0.1 => 3,
            _ => 4,
        };
        format!("{:.digits$} {}", self.value, self.unit)
            .trim_end()
            .to_owned()
    }

    fn met(&self) -> &'static str {
        match self.goal.met(self.value) {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.what, self.shown())?;
        if self.goal != Goal::Told {
            write!(out, " ({})", self.goal)?;
        }
        if !self.beside.is_empty() {
            write!(out, "; {}", self.beside)?;
        }
        Ok(())
    }
}

/// All figures of a run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Table {
    figures: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    row: &'static str,
    #[serde(flatten)]
    figure: Figure,
    met: Option<bool>,
}

impl Table {
    pub(super) fn add(&mut self, row: &'static str, figure: Figure) {
        let met = figure.goal.met(figure.value);
        self.figures.push(Line { row, figure, met });
    }

    pub(super) fn markdown(&self) -> String {
        let mut text =
            "| row | what | goal | figure | met | beside |\n|---|---|---|---|---|---|\n".to_owned();
        for Line { row, figure, .. } in &self.figures {
            let Figure {
                what, goal, beside, ..
            } = figure;
            let _ = writeln!(
                text,
                "| {row} | {what} | {goal} | {} | {} | {beside} |",
                figure.shown(),
                figure.met(),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_with_their_goals() {
        let mut table = Table::default();
        let figure = Figure::new("a", Goal::AtMost(0.2), 0.153, "s").beside("b");
        assert_eq!(figure.to_string(), "a: 0.153 s (≤ 0.2); b");
        table.add("row", figure);
        table.add("row", Figure::new("c", Goal::AtLeast(5.0), 4.0, ""));
        table.add("row", Figure::new("d", Goal::Told, 123.4, "MB"));
        let text = table.markdown();
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| row | a | ≤ 0.2 | 0.153 s | yes | b |",
                "| row | c | ≥ 5 | 4 | no |  |",
                "| row | d | – | 123 MB |  |  |",
            ]
        );
        let json = serde_json::to_value(&table).expect("JSON");
        assert_eq!(json["figures"][0]["goal"], "≤ 0.2");
        assert_eq!(json["figures"][1]["met"], false);
    }
}
