//! Samples and their rows.

use std::time::Duration;

/// Width of a row's label.
const LABEL: usize = 46;

/// Measurements of one thing.
#[derive(Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn of(value: f64) -> Self {
        Self(vec![value])
    }

    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Minimum, median, maximum.
    pub fn row(self, label: &str) {
        self.print(label, [0.0, 0.5, 1.0]);
    }

    /// Median, 99th of a hundred, maximum.
    pub fn tail_row(self, label: &str) {
        self.print(label, [0.5, 0.99, 1.0]);
    }

    fn print(mut self, label: &str, places: [f64; 3]) {
        self.0.sort_by(f64::total_cmp);
        let last = self.0.len().checked_sub(1).expect("something was measured");
        let [a, b, c] = places.map(|place| self.0[(last as f64 * place).round() as usize]);
        println!("{label:<LABEL$} {a:>10.2} {b:>10.2} {c:>10.2}");
    }
}

pub fn heading(title: &str, first: &str, second: &str, third: &str) {
    println!("{title:<LABEL$} {first:>10} {second:>10} {third:>10}");
}

pub fn memory_row(label: &str, resident_mb: f64, proportional_mb: f64) {
    println!("{label:<LABEL$} {resident_mb:>10.1} {proportional_mb:>10.1}");
}

pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
