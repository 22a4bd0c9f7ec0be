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
    /// Read by a program of the client's.
    Program {
        /// Path of the program.
        path: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
    },
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
    /// containerd's namespace, which a logging program is told.
    pub namespace: String,
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
            "binary" if stream != "stdin" => {
                let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
                let path = absolute(&decoded(path, false).ok_or_else(refuse)?)?;
                Ok(Self::Program { path, arguments: arguments(query).ok_or_else(refuse)? })
            }
            "kiai-log" if stream != "stdin" => Ok(Self::Log(absolute(rest)?)),
            _ => Err(refuse()),
        }
    }
}

/// The arguments of a logging program: each name and each value of the query, in their order.
fn arguments(query: &str) -> Option<Vec<String>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let words = pairs.flat_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        [name, value]
    });
    words.map(|word| decoded(word, true)).collect()
}

/// A part of a URI without its escapes (RFC 3986 §2.1); in a query `+` is a space. None if an escape is malformed.
fn decoded(text: &str, query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let all = digits.iter().all(u8::is_ascii_hexdigit);
                let digits = std::str::from_utf8(&digits).ok().filter(|_| all)?;
                u8::from_str_radix(digits, 16).ok()?
            }
            b'+' if query => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
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
    fn a_logging_program_has_the_querys_names_and_values_as_arguments() {
        let parse = |text| StdioUri::parse("stderr", text).unwrap();
        let program = |path: &str, arguments: &[&str]| StdioUri::Program {
            path: path.into(),
            arguments: arguments.iter().map(|argument| argument.to_string()).collect(),
        };
        assert_eq!(parse("binary:///bin/x"), program("/bin/x", &[]));
        let nerdctl = "binary:///usr/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib";
        assert_eq!(parse(nerdctl), program("/usr/bin/nerdctl", &["_NERDCTL_INTERNAL_LOGGING", "/var/lib"]));
        let all = parse("binary:///a%20b+c?-c=echo+x&flag&y=%C3%A9=");
        assert_eq!(all, program("/a b+c", &["-c", "echo x", "flag", "", "y", "é="]));
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        for (stream, text) in [
            ("stdout", "binary://x"),
            ("stdout", "binary:///x?%2"),
            ("stdout", "binary:///x%zz"),
            ("stdout", "binary:///x?a=%ff"),
            ("stdin", "binary:///x"),
            ("stdout", "file://x"),
            ("stdin", "file:///x"),
            ("stdin", "kiai-log:///x"),
        ] {
            let error = StdioUri::parse(stream, text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains(stream), "{error}");
        }
    }
}
