//! `--filter KEY=VALUE`: values of one key are alternatives, different keys must all fit. Pure.

use std::collections::BTreeMap;

use anyhow::bail;

/// The filters of one command.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Filters(Vec<(String, String)>);

impl Filters {
    /// Parses the values of the option.
    ///
    /// # Errors
    /// A key is none of `known`, or has no value.
    pub(super) fn parse(words: &[String], known: &[&str]) -> anyhow::Result<Self> {
        let mut filters = Vec::new();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                bail!("filter {word:?}: write KEY=VALUE, with KEY one of {}", known.join(", "));
            };
            if !known.contains(&key) {
                bail!("filter {word:?}: no filter by {key:?}; there are {}", known.join(", "));
            }
            filters.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self(filters))
    }

    /// Whether one of the values of `key` fits, or there is none.
    pub(super) fn any(&self, key: &str, fits: impl Fn(&str) -> bool) -> bool {
        let mut values = self.0.iter().filter(|(known, _)| known == key).peekable();
        values.peek().is_none() || values.any(|(_, value)| fits(value))
    }

    /// Whether all of the `label` filters fit; of labels docker wants them all.
    pub(super) fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().filter(|(key, _)| key == "label").all(|(_, wanted)| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(words: &[&str]) -> Filters {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Filters::parse(&words, &["name", "label", "status"]).unwrap()
    }

    #[test]
    fn values_are_alternatives_and_labels_are_not() {
        let some = filters(&["name=a", "name=b", "status=up"]);
        assert!(some.any("name", |name| name == "b") && !some.any("name", |name| name == "c"));
        assert!(some.any("label", |_| false));
        let labels = BTreeMap::from([("x".to_owned(), "1".to_owned()), ("y".to_owned(), "2".to_owned())]);
        for (words, expected) in [
            (&["label=x"][..], true),
            (&["label=x=1", "label=y"], true),
            (&["label=x=1", "label=y=1"], false),
            (&["label=z"], false),
            (&[], true),
        ] {
            assert_eq!(filters(words).labels(&labels), expected, "{words:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_the_known_ones() {
        for word in ["colour=red", "name"] {
            let error = Filters::parse(&[word.to_owned()], &["name", "status"]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("name, status"), "{error}");
        }
    }
}
