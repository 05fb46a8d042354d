//! What was measured, as Markdown and as JSON.
use serde_json::{Value, json};

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// In the table's unit; seconds until it is converted.
    pub(crate) value: f64,
    /// Processor time for each record, microseconds; `None` where it was not measured.
    pub(crate) server_us: Option<f64>,
    pub(crate) client_us: Option<f64>,
    /// All records that were to be handled were, and no others.
    pub(crate) valid: bool,
}

impl Sample {
    pub(crate) fn of(value: f64) -> Self {
        Self { value, server_us: None, client_us: None, valid: true }
    }

    #[must_use]
    pub(crate) fn map(self, convert: impl Fn(f64) -> f64) -> Self {
        Self { value: convert(self.value), ..self }
    }
}

/// The samples of one candidate with one workload.
#[derive(Debug)]
struct Row {
    workload: String,
    candidate: String,
    /// Candidates of the same workload that this one is compared with, one for each of the table's ratios.
    against: &'static [&'static str],
    samples: Vec<Sample>,
}

/// Rows in the order in which they were first measured.
#[derive(Debug)]
pub(crate) struct Table {
    title: &'static str,
    unit: &'static str,
    /// Headings of the ratios.
    ratios: &'static [&'static str],
    decimals: usize,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new(
        title: &'static str,
        unit: &'static str,
        ratios: &'static [&'static str],
        decimals: usize,
    ) -> Self {
        Self { title, unit, ratios, decimals, rows: Vec::new() }
    }

    pub(crate) fn add(
        &mut self,
        workload: &str,
        candidate: &str,
        against: &'static [&'static str],
        sample: Sample,
    ) {
        let known = |row: &&mut Row| row.workload == workload && row.candidate == candidate;
        match self.rows.iter_mut().find(known) {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row {
                workload: workload.to_owned(),
                candidate: candidate.to_owned(),
                against,
                samples: vec![sample],
            }),
        }
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.rows.iter().all(Row::is_valid)
    }

    fn ratio(&self, row: &Row, against: &str) -> Option<f64> {
        let other =
            self.rows.iter().find(|other| other.workload == row.workload && other.candidate == against)?;
        (row.is_valid() && other.is_valid()).then(|| row.median() / other.median())
    }

    fn ratios(&self, row: &Row) -> Vec<Option<f64>> {
        let ratio = |at: usize| row.against.get(at).and_then(|against| self.ratio(row, against));
        (0..self.ratios.len()).map(ratio).collect()
    }

    pub(crate) fn markdown(&self) -> String {
        let has_times = self.rows.iter().any(|row| row.median_of(|sample| sample.server_us).is_some());
        let mut head = vec!["workload", "candidate", self.unit, "spread"];
        head.extend(self.ratios);
        if has_times {
            head.extend(["Redis us/record", "client us/record"]);
        }
        let mut text = format!("### {}\n\n", self.title);
        line(&mut text, head.iter().map(|cell| (*cell).to_owned()));
        line(&mut text, (0..head.len()).map(|at| if at < 2 { "---".into() } else { "---:".into() }));
        for row in &self.rows {
            let mut cells = vec![row.workload.clone(), row.candidate.clone()];
            cells.push(match row.is_valid() {
                true => format!("{:.*}", self.decimals, row.median()),
                false => "invalid".to_owned(),
            });
            cells.push(format!("{:.0} %", 100.0 * row.spread()));
            cells.extend(self.ratios(row).into_iter().map(|ratio| cell(ratio, 2)));
            if has_times {
                cells.push(cell(row.median_of(|sample| sample.server_us), 2));
                cells.push(cell(row.median_of(|sample| sample.client_us), 2));
            }
            line(&mut text, cells.into_iter());
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "workload": row.workload,
                "candidate": row.candidate,
                "valid": row.is_valid(),
                "samples": row.samples.iter().map(|sample| sample.value).collect::<Vec<_>>(),
                "median": row.median(),
                "spread": row.spread(),
                "ratios": self.ratios.iter().copied().zip(self.ratios(row)).collect::<Vec<_>>(),
                "redis_us_per_record": row.median_of(|sample| sample.server_us),
                "client_us_per_record": row.median_of(|sample| sample.client_us),
            })
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        json!({ "title": self.title, "unit": self.unit, "rows": rows })
    }
}

impl Row {
    fn is_valid(&self) -> bool {
        self.samples.iter().all(|sample| sample.valid)
    }

    fn values(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.value).collect()
    }

    fn median(&self) -> f64 {
        median(self.values()).unwrap_or(f64::NAN)
    }

    fn median_of(&self, part: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.samples.iter().filter_map(part).collect())
    }

    /// (greatest - least) / median.
    fn spread(&self) -> f64 {
        let values = self.values();
        let greatest = values.iter().copied().fold(f64::MIN, f64::max);
        let least = values.iter().copied().fold(f64::MAX, f64::min);
        (greatest - least) / self.median()
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 if middle == 0 => None,
        0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(String::new, |value| format!("{value:.decimals$}"))
}

fn line(text: &mut String, cells: impl Iterator<Item = String>) {
    for cell in cells {
        text.push_str("| ");
        text.push_str(&cell);
        text.push(' ');
    }
    text.push_str("|\n");
}
