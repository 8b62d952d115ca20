//! Words of the command line, sorted into options and the rest.

use std::cell::Cell;
use std::str::FromStr;

/// What a command was called with.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    positional: Vec<String>,
    valued: Vec<(String, String)>,
    switches: Vec<String>,
    misused: Cell<bool>,
}

impl Arguments {
    /// Sorts words by the options that a command knows; `--option=value` is taken as well.
    pub(crate) fn read(
        words: &[String],
        valued: &[&str],
        switches: &[&str],
    ) -> Result<Self, String> {
        let mut arguments = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (name, attached) = match word.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_string())),
                _ => (word.as_str(), None),
            };
            if valued.contains(&name) {
                let value = attached.or_else(|| words.next().cloned());
                let value = value.ok_or_else(|| format!("{name} wants a value"))?;
                arguments.valued.push((name.to_string(), value));
            } else if switches.contains(&name) && attached.is_none() {
                arguments.switches.push(name.to_string());
            } else if name.starts_with("--") {
                return Err(format!("there is no option {name}"));
            } else {
                arguments.positional.push(word.clone());
            }
        }
        Ok(arguments)
    }

    /// The word at a place, which must be there.
    pub(crate) fn word(&self, place: usize, what: &str) -> Result<&str, String> {
        let word = self.positional.get(place).map(String::as_str);
        word.ok_or_else(|| self.misuse(format!("{what} is missing")))
    }

    /// All words that are no options.
    pub(crate) fn words(&self) -> &[String] {
        &self.positional
    }

    /// The last value of an option.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    /// All values of an option.
    pub(crate) fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &str> {
        let named = self.valued.iter().filter(move |(option, _)| option == name);
        named.map(|(_, value)| value.as_str())
    }

    /// The value of an option, read as a number or whatever is wanted.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        self.value(name).map(|text| self.parse(name, text)).transpose()
    }

    /// Reads the text of an option or a word.
    pub(crate) fn parse<T: FromStr>(&self, name: &str, text: &str) -> Result<T, String> {
        text.parse().map_err(|_| self.misuse(format!("{name} cannot be {text:?}")))
    }

    /// Whether a switch was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.switches.iter().any(|switch| switch == name)
    }

    /// Notes that the command was called wrongly, and gives back why.
    pub(crate) fn misuse(&self, fault: String) -> String {
        self.misused.set(true);
        fault
    }

    /// Whether a fault is the caller's.
    pub(crate) fn is_misused(&self) -> bool {
        self.misused.get()
    }
}
