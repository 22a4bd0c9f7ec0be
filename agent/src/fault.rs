//! Why a call of the host is refused or failed, and the ttrpc status each reason becomes.
//!
//! The codes are those the head of `protocol/proto/agent.proto` lists; a message names the thing.

use ttrpc::Code;

/// The result of everything the host can ask for.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

/// A refusal or a failure, as the host will see it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The named container, process, interface or device does not exist, or no longer does.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request can never work as it stands.
    #[error("{0}")]
    InvalidArgument(String),
    /// The request came in the wrong state: start before create, exec in a stopped container.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request is understood and not supported.
    #[error("{0}")]
    Unimplemented(String),
    /// Anything the guest itself could not do; the chain of causes is the message.
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
