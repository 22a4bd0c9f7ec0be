//! Where a standard stream leads: the URIs of CreateTaskRequest and ExecProcessRequest.

use std::path::PathBuf;

use super::StdioError;

/// One stream's other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StdioUri {
    /// Nobody's: input is empty, output is dropped.
    None,
    /// A fifo of the client's (or a file or device: then it is read or appended to).
    Path(PathBuf),
    /// Raw bytes appended.
    File(PathBuf),
    /// Lines of JSON appended: {"time", "stream", "log"}.
    Log(PathBuf),
}

/// The URIs as the client gave them, for State.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uris {
    /// Standard input.
    pub stdin: String,
    /// Standard output, and with a terminal all output.
    pub stdout: String,
    /// Standard error; unused with a terminal.
    pub stderr: String,
}

impl StdioUri {
    pub(super) fn parse(stream: &'static str, text: &str) -> Result<Self, StdioError> {
        let refuse = || StdioError::Uri { stream, uri: text.into() };
        let absolute = |path: &str| path.starts_with('/').then(|| PathBuf::from(path)).ok_or_else(refuse);
        if text.is_empty() {
            return Ok(Self::None);
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Self::Path(text.into())) };
        match scheme {
            "fifo" => Ok(Self::Path(absolute(rest)?)),
            "file" if stream != "stdin" => Ok(Self::File(absolute(rest)?)),
            "kiai-log" if stream != "stdin" => Ok(Self::Log(absolute(rest)?)),
            _ => Err(refuse()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let parse = |text| StdioUri::parse("stdout", text).unwrap();
        assert_eq!(parse(""), StdioUri::None);
        assert_eq!(parse("/run/fifo"), StdioUri::Path("/run/fifo".into()));
        assert_eq!(parse("file:///var/log/x"), StdioUri::File("/var/log/x".into()));
        assert_eq!(parse("kiai-log:///var/log/x"), StdioUri::Log("/var/log/x".into()));
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        for (stream, text) in [
            ("stdout", "binary:///bin/x"),
            ("stdout", "file://x"),
            ("stdin", "file:///x"),
            ("stdin", "kiai-log:///x"),
        ] {
            let error = StdioUri::parse(stream, text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains(stream), "{error}");
        }
    }
}
