//! Where a copy goes, by docker's rules (docker container cp). Pure.

use std::path::Path;
use std::path::PathBuf;

/// Kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Any other file.
    File,
}

/// The source of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Kind of the file.
    pub kind: Kind,
    /// The last part of its path; none for the root.
    pub name: Option<PathBuf>,
    /// The path ends with `/.`: the directory's content is copied, not the directory.
    pub content_only: bool,
}

/// The destination as it is before the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The file exists.
    There(Kind),
    /// It does not, but the directory above does.
    Missing,
    /// The directory above does not exist either.
    NoParent,
}

/// An existing directory, and the name in it under which the source is copied; `.` for the directory itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The directory.
    pub into: PathBuf,
    /// The name.
    pub name: PathBuf,
}

/// The source cannot be copied there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The directory above the destination does not exist.
    #[error("{0}: no such directory")]
    NoParent(String),
    /// A directory cannot replace a file.
    #[error("{0} is a file, and a directory cannot replace it")]
    OntoFile(String),
    /// The text asks for a directory, and there is none.
    #[error("{0}: no such directory; make it first, or leave out the slash at the end")]
    NoDirectory(String),
}

/// Determines the target of a copy to `text`, the path as the user wrote it.
///
/// # Errors
/// [`Refused`] names the path.
pub fn target(text: &str, found: Found, source: &Source) -> Result<Target, Refused> {
    let path = Path::new(text);
    let whole = || Target { into: path.to_owned(), name: PathBuf::from(".") };
    let renamed = || {
        let into = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
        Target { into: into.to_owned(), name }
    };
    match (found, source.kind) {
        (Found::There(Kind::Directory), Kind::Directory) if source.content_only => Ok(whole()),
        (Found::There(Kind::Directory), _) => match &source.name {
            Some(name) => Ok(Target { into: path.to_owned(), name: name.clone() }),
            None => Ok(whole()),
        },
        (Found::There(Kind::File), Kind::Directory) => Err(Refused::OntoFile(text.to_owned())),
        (Found::There(Kind::File), Kind::File) => Ok(renamed()),
        (Found::NoParent, _) => {
            let parent = path.parent().unwrap_or(path).display().to_string();
            Err(Refused::NoParent(parent))
        }
        (Found::Missing, Kind::File) if text.ends_with('/') => Err(Refused::NoDirectory(text.to_owned())),
        (Found::Missing, _) => Ok(renamed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_where_docker_puts_them() {
        use Found::Missing;
        use Found::NoParent;
        use Found::There;
        use Kind::Directory;
        use Kind::File;
        let to = |into: &str, name: &str| Ok(Target { into: into.into(), name: name.into() });
        let table = [
            // SRC_PATH does specify a file ...
            ("/d/new", Missing, File, false, to("/d", "new")),
            ("new", Missing, File, false, to(".", "new")),
            ("/d/new/", Missing, File, false, Err(Refused::NoDirectory("/d/new/".into()))),
            ("/d/x/y", NoParent, File, false, Err(Refused::NoParent("/d/x".into()))),
            ("/d/old", There(File), File, false, to("/d", "old")),
            ("/d", There(Directory), File, false, to("/d", "src")),
            // ... or a directory.
            ("/d/new", Missing, Directory, false, to("/d", "new")),
            ("/d/new/", Missing, Directory, true, to("/d", "new")),
            ("/d/old", There(File), Directory, false, Err(Refused::OntoFile("/d/old".into()))),
            ("/d", There(Directory), Directory, false, to("/d", "src")),
            ("/d", There(Directory), Directory, true, to("/d", ".")),
        ];
        for (text, found, kind, content_only, expected) in table {
            let source = Source { kind, name: Some("src".into()), content_only };
            assert_eq!(target(text, found, &source), expected, "{text}");
        }
        let root = Source { kind: Directory, name: None, content_only: false };
        assert_eq!(target("/d", There(Directory), &root), to("/d", "."));
    }
}
