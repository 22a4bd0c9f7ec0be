//! The part of Go's templates that people write after `--format`: fields, pipelines with functions, `if`, `range` and
//! `with`, variables (text/template of Go). Values are JSON. Pure.
//!
//! A field that does not exist is an error that names those that do. Objects whose keys are a user's words, as labels
//! are, have no such rule: there the result is `<no value>`, as in Go.

mod eval;
mod parse;

use serde_json::Value;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template(Vec<parse::Node>);

/// The text is not a template, or does not fit the value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum TemplateError {
    /// Wrong form.
    #[error("template {text:?}: {reason}")]
    Form {
        /// The template.
        text: String,
        /// The reason.
        reason: String,
    },
    /// A field does not exist.
    #[error("template: no field {name:?} here; there are {there}")]
    Field {
        /// The field.
        name: String,
        /// The others.
        there: String,
    },
    /// A function cannot be called.
    #[error("template: {0}")]
    Call(String),
}

impl Template {
    /// Parses a template. As docker does it, `\t` and `\n` in it are a tab and a line feed.
    ///
    /// # Errors
    /// [`TemplateError::Form`].
    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        parse::parse(text).map(Self).map_err(|reason| TemplateError::Form { text: text.to_owned(), reason })
    }

    /// The text for a value.
    ///
    /// # Errors
    /// A field or a function does not exist, or a value is of the wrong kind.
    pub(super) fn render(&self, value: &Value) -> Result<String, TemplateError> {
        eval::render(&self.0, value)
    }
}

#[cfg(test)]
mod tests;
