//! Why a request to the shim failed: a containerd status code and a message that names the thing.
//!
//! The one place where errors become codes. Inside the runtime errors are typed; a caller of the Task service
//! sees only this.

use std::error::Error;
use std::fmt;

use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::Code;

use crate::plan::PlanError;

/// A failed request.
#[derive(Debug, Clone)]
pub struct Failure {
    code: Code,
    message: String,
}

/// The request's result.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// There is no such container, process or file.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { code: Code::NOT_FOUND, message: message.into() }
    }

    /// The id is taken.
    pub fn already_exists(message: impl Into<String>) -> Self {
        Self { code: Code::ALREADY_EXISTS, message: message.into() }
    }

    /// The request contradicts itself or asks for what cannot be had.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { code: Code::INVALID_ARGUMENT, message: message.into() }
    }

    /// Not in this state.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self { code: Code::FAILED_PRECONDITION, message: message.into() }
    }

    /// The request is known but not served.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self { code: Code::UNIMPLEMENTED, message: message.into() }
    }

    /// The host or the guest failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { code: Code::INTERNAL, message: message.into() }
    }

    /// The host failed at `step`; the chain of causes is part of the message.
    pub fn host(step: impl fmt::Display, error: &dyn Error) -> Self {
        Self::internal(format!("{step}: {}", chain(error)))
    }

    /// The status code.
    pub fn code(&self) -> Code {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<PlanError> for Failure {
    fn from(e: PlanError) -> Self {
        match e {
            PlanError::NoSource { .. } => Self::not_found(chain(&e)),
            _ => Self::invalid(chain(&e)),
        }
    }
}

/// What the agent answered keeps its code.
impl From<ttrpc::Error> for Failure {
    fn from(e: ttrpc::Error) -> Self {
        match e {
            ttrpc::Error::RpcStatus(status) => Self { code: status.code(), message: status.message },
            other => Self::internal(format!("agent: {other}")),
        }
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(e: Failure) -> Self {
        Self::RpcStatus(ttrpc::get_status(e.code, e.message))
    }
}
