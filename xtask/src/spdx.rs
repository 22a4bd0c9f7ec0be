//! Licence expressions (SPDX, annex D): whether the licences that are allowed suffice.

use anyhow::{Result, bail};

/// Whether `expression` holds if each licence that `is_allowed` is true. `MIT/Apache-2.0`, the form from before there
/// were expressions, means either.
pub(crate) fn holds(expression: &str, is_allowed: impl Fn(&str) -> bool) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = Words { words: spaced.split_whitespace().collect(), next: 0 };
    let holds = either(&mut words, &is_allowed)?;
    if let Some(word) = words.peek() {
        bail!("unexpected `{word}`");
    }
    Ok(holds)
}

struct Words<'a> {
    words: Vec<&'a str>,
    next: usize,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).copied()
    }

    fn take(&mut self) -> Option<&'a str> {
        let word = self.peek()?;
        self.next += 1;
        Some(word)
    }

    /// Goes past `word` if it is next.
    fn skip(&mut self, word: &str) -> bool {
        let is_next = self.peek() == Some(word);
        self.next += usize::from(is_next);
        is_next
    }
}

fn either(words: &mut Words<'_>, is_allowed: &impl Fn(&str) -> bool) -> Result<bool> {
    let mut holds = both(words, is_allowed)?;
    while words.skip("OR") {
        holds |= both(words, is_allowed)?;
    }
    Ok(holds)
}

fn both(words: &mut Words<'_>, is_allowed: &impl Fn(&str) -> bool) -> Result<bool> {
    let mut holds = one(words, is_allowed)?;
    while words.skip("AND") {
        holds &= one(words, is_allowed)?;
    }
    Ok(holds)
}

fn one(words: &mut Words<'_>, is_allowed: &impl Fn(&str) -> bool) -> Result<bool> {
    if words.skip("(") {
        let holds = either(words, is_allowed)?;
        return if words.skip(")") { Ok(holds) } else { bail!("a bracket is not closed") };
    }
    let Some(licence) = words.take().filter(|word| !["AND", "OR", "WITH", ")"].contains(word)) else {
        bail!("a licence is missing")
    };
    if !words.skip("WITH") {
        return Ok(is_allowed(licence));
    }
    match words.take() {
        Some(exception) => Ok(is_allowed(&format!("{licence} WITH {exception}"))),
        None => bail!("an exception is missing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_holds(expression: &str, expected: bool) {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];
        assert_eq!(
            holds(expression, |licence| allowed.contains(&licence)).unwrap(),
            expected,
            "{expression}"
        );
    }

    #[test]
    fn one_of_several_suffices_and_all_of_several_must_be_allowed() {
        assert_holds("MIT", true);
        assert_holds("ISC", false);
        assert_holds("ISC OR MIT", true);
        assert_holds("MIT AND ISC", false);
        assert_holds("ISC OR MIT AND Apache-2.0", true);
        assert_holds("(ISC OR MIT) AND Zlib", false);
        assert_holds("MIT/Apache-2.0", true);
        assert_holds("Apache-2.0 WITH LLVM-exception", true);
        assert_holds("MIT WITH LLVM-exception", false);
    }

    #[test]
    fn what_is_no_expression_is_an_error() {
        for broken in ["", "MIT OR", "(MIT", "MIT)", "MIT ISC", "AND MIT", "MIT WITH"] {
            assert!(holds(broken, |_| true).is_err(), "{broken}");
        }
    }
}
