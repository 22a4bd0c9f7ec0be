//! The errors of the host's calls, and the ttrpc status of each.
//!
//! The head of `protocol/proto/agent.proto` lists the codes; every message names its object.

use ttrpc::Code;

/// The result of a call of the host.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

/// Why a call was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The named container, process, interface or device does not exist, or no longer does.
    #[error("{0}")]
    NotFound(String),
    /// The id or path is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request is wrong in itself.
    #[error("{0}")]
    InvalidArgument(String),
    /// The object is in the wrong state for the request: start before create, exec in a stopped container.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request is not supported.
    #[error("{0}")]
    Unimplemented(String),
    /// The guest failed; the message is the chain of causes.
    #[error("{0:#}")]
    Internal(#[from] anyhow::Error),
}

impl Fault {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            Self::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Internal(_) => Code::INTERNAL,
        }
    }
}

impl From<Fault> for ttrpc::Error {
    fn from(fault: Fault) -> Self {
        Self::RpcStatus(ttrpc::get_status(fault.code(), fault.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_chain_of_causes_becomes_one_message() {
        let error = Err::<(), _>(std::io::Error::from_raw_os_error(libc::ENOENT))
            .context("mount \"kiai\" at /run/x")
            .unwrap_err();
        let ttrpc::Error::RpcStatus(status) = Fault::from(error).into() else { panic!("a status") };
        assert_eq!(status.code(), Code::INTERNAL);
        assert!(
            status.message().starts_with("mount \"kiai\" at /run/x: No such file"),
            "{}",
            status.message()
        );
    }
}
