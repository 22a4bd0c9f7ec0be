//! The environment of a process: the image's, then each `--env-file`, then each `-e`; the last definition is used.
//! Pure: the host's environment and the files' text come in as arguments.

/// Variables in the order of their first definition; each name once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: Vec<(String, String)>,
}

/// A variable is invalid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvError {
    /// A name is empty.
    #[error("{0:?} is not an environment variable; write NAME=VALUE or NAME")]
    NoName(String),
    /// A name has white space in it.
    #[error("line {line} of {file}: the variable name {name:?} contains white space")]
    WhiteSpace {
        /// The environment file.
        file: String,
        /// Counted from 1.
        line: usize,
        /// The offending name.
        name: String,
    },
    /// A NUL byte cannot be passed to a program.
    #[error("environment variable {0:?} contains a NUL byte")]
    Nul(String),
}

impl Environment {
    /// Reads the `NAME=VALUE` strings of an image's configuration. A string without `=` defines an empty value.
    pub fn from_image(words: &[String]) -> Self {
        let mut environment = Self::default();
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            if !name.is_empty() {
                environment.set(name, value);
            }
        }
        environment
    }

    /// Applies the value of one `-e`: `NAME=VALUE`, or `NAME` for the host's value. If the host has no such variable,
    /// it is unset.
    ///
    /// # Errors
    /// The text has no name, or has a NUL byte.
    pub fn apply(&mut self, word: &str, host: &dyn Fn(&str) -> Option<String>) -> Result<(), EnvError> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, host(word)),
        };
        if name.is_empty() {
            return Err(EnvError::NoName(word.to_owned()));
        }
        if word.contains('\0') {
            return Err(EnvError::Nul(name.to_owned()));
        }
        match value {
            Some(value) => self.set(name, &value),
            None => self.variables.retain(|(known, _)| known != name),
        }
        Ok(())
    }

    /// Applies the text of an `--env-file`: one variable per line, `#` starts a comment line, quotes are not removed.
    ///
    /// # Errors
    /// A line has no name or one with white space; the error names file and line.
    pub fn apply_file(
        &mut self,
        file: &str,
        text: &str,
        host: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), EnvError> {
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let name = line.split('=').next().unwrap_or(line);
            if name.contains(char::is_whitespace) {
                let (file, name) = (file.to_owned(), name.to_owned());
                return Err(EnvError::WhiteSpace { file, line: number + 1, name });
            }
            self.apply(line, host)?;
        }
        Ok(())
    }

    /// Sets a variable; an existing one keeps its position.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.variables.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Sets a variable unless it exists.
    pub fn set_default(&mut self, name: &str, value: &str) {
        if !self.variables.iter().any(|(known, _)| known == name) {
            self.set(name, value);
        }
    }

    /// As `NAME=VALUE` strings.
    pub fn into_words(self) -> Vec<String> {
        self.variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Option<String> {
        (name == "HOSTVAR").then(|| "from host".to_owned())
    }

    #[test]
    fn later_words_win_and_keep_the_first_place() {
        let mut environment = Environment::from_image(&["A=1".into(), "B=2".into(), "BARE".into()]);
        for word in ["B=3=4", "HOSTVAR", "C="] {
            environment.apply(word, &host).unwrap();
        }
        assert_eq!(environment.into_words(), ["A=1", "B=3=4", "BARE=", "HOSTVAR=from host", "C="]);
    }

    #[test]
    fn a_name_the_host_does_not_have_is_unset() {
        let mut environment = Environment::from_image(&["A=1".into()]);
        environment.apply("A", &host).unwrap();
        assert!(environment.into_words().is_empty());
    }

    #[test]
    fn a_file_has_comments_blank_lines_and_no_quotes() {
        let mut environment = Environment::default();
        let text = "\u{feff}# comment\n\n  X=\"quoted\" # kept\nHOSTVAR\nY=\n";
        environment.apply_file("f", text, &host).unwrap();
        assert_eq!(environment.into_words(), ["X=\"quoted\" # kept", "HOSTVAR=from host", "Y="]);
    }

    #[test]
    fn bad_words_are_named() {
        let mut environment = Environment::default();
        assert_eq!(environment.apply("=x", &host), Err(EnvError::NoName("=x".into())));
        assert_eq!(environment.apply("A=\0", &host), Err(EnvError::Nul("A".into())));
        let error = environment.apply_file("vars", "OK=1\nexport A=1\n", &host).unwrap_err();
        assert_eq!(error.to_string(), "line 2 of vars: the variable name \"export A\" contains white space");
    }
}
