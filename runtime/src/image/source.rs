//! The source of an image: a registry reference, `oci:DIR[:TAG]` or `docker-archive:FILE`.

use std::path::PathBuf;

use oci_client::Reference;

use super::ImageError;

/// The source of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A reference to a registry, as docker understands it.
    Registry(Reference),
    /// An OCI image layout, and the tag of one of its images.
    Layout {
        /// Its directory.
        directory: PathBuf,
        /// `org.opencontainers.image.ref.name` of the image; `None` for the only image of the layout.
        tag: Option<String>,
    },
    /// A file written by `docker save`.
    Archive(PathBuf),
}

impl ImageSource {
    /// Parses the user's text.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return Ok(Self::Archive(rest.into()));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (directory, tag) = match rest.rsplit_once(':') {
                // A colon in the name of a directory does not start a tag.
                Some((directory, tag)) if !tag.contains('/') => (directory, Some(tag.to_owned())),
                _ => (rest, None),
            };
            return Ok(Self::Layout { directory: directory.into(), tag });
        }
        let reference = text.parse().map_err(|e| ImageError::Reference {
            text: text.chars().take(300).collect(),
            reason: format!("{e}"),
        })?;
        Ok(Self::Registry(reference))
    }

    /// The name of the image in the store.
    pub fn name(&self) -> String {
        match self {
            Self::Registry(reference) => reference.whole(),
            Self::Layout { directory, tag: None } => format!("oci:{}", directory.display()),
            Self::Layout { directory, tag: Some(tag) } => format!("oci:{}:{tag}", directory.display()),
            Self::Archive(file) => format!("docker-archive:{}", file.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_people_write_them() {
        let name = |text| ImageSource::parse(text).unwrap().name();
        assert_eq!(name("debian"), "docker.io/library/debian:latest");
        assert_eq!(name("127.0.0.1:5000/a/b:1"), "127.0.0.1:5000/a/b:1");
        assert_eq!(name("oci:/a/b"), "oci:/a/b");
        let layout = ImageSource::parse("oci:/a/b:12").unwrap();
        assert_eq!(layout, ImageSource::Layout { directory: "/a/b".into(), tag: Some("12".into()) });
        assert_eq!(ImageSource::parse("docker-archive:x.tar").unwrap(), ImageSource::Archive("x.tar".into()));
        assert!(ImageSource::parse("library/UPPER").is_err());
        assert!(ImageSource::parse("").is_err());
    }
}
