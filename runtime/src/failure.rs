//! The error of a request to the shim: a containerd status code and a message that names the object.
//!
//! Only this module turns errors into status codes. Inside the runtime errors are typed; a caller of the Task service
//! sees an [`RpcError`] only.

use std::error::Error;
use std::fmt;
use std::io;

use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::Code;

use crate::agent::AgentError;
use crate::cdi::CdiError;
use crate::cdi::RegistryError;
use crate::container::CreateError;
use crate::container::HookError;
use crate::container::TaskError;
use crate::container::io::StdioError;
use crate::host::MountError;
use crate::host::NetworkError;
use crate::plan::PlanError;
use crate::sandbox::AssignError;
use crate::sandbox::ResizeError;
use crate::sandbox::SandboxBootError;

/// The error of a failed request.
#[derive(Debug, Clone)]
pub struct RpcError {
    code: Code,
    message: String,
}

/// The result of a request.
pub type RpcResult<T> = Result<T, RpcError>;

impl RpcError {
    /// The container, process or file does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { code: Code::NOT_FOUND, message: message.into() }
    }

    /// The id is in use.
    pub fn already_exists(message: impl Into<String>) -> Self {
        Self { code: Code::ALREADY_EXISTS, message: message.into() }
    }

    /// The request contradicts itself or exceeds a limit.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { code: Code::INVALID_ARGUMENT, message: message.into() }
    }

    /// The object's state does not permit the request.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self { code: Code::FAILED_PRECONDITION, message: message.into() }
    }

    /// The request is not supported.
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

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for RpcError {}

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

/// An error with a status code, which does not depend on its message.
trait Coded: Error + Sized {
    fn code(&self) -> Code;
}

impl Coded for CreateError {
    fn code(&self) -> Code {
        match self {
            Self::Spec { source: oci_spec::OciSpecError::Io(error), .. } => of_io(error),
            Self::Spec { .. } => Code::INVALID_ARGUMENT,
            Self::Config(_) => Code::FAILED_PRECONDITION,
            Self::NoSandbox(_) => Code::FAILED_PRECONDITION,
            Self::Cdi(error) => error.code(),
            Self::Plan(error) => error.code(),
            Self::Boot(error) => error.code(),
            Self::Mount(error) => error.code(),
            Self::Assign(error) => error.code(),
            Self::Stdio(error) => error.code(),
            Self::Hook(error) => error.code(),
            Self::Agent(error) => error.code(),
            Self::Task(error) => error.code(),
        }
    }
}

impl Coded for CdiError {
    fn code(&self) -> Code {
        match self {
            Self::Registry(RegistryError::Unknown { .. }) => Code::NOT_FOUND,
            _ => Code::INVALID_ARGUMENT,
        }
    }
}

impl Coded for TaskError {
    fn code(&self) -> Code {
        match self {
            Self::NoContainer(_) | Self::NoProcess { .. } | Self::Finished(_) | Self::NotPlugged { .. } => {
                Code::NOT_FOUND
            }
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::State { .. } | Self::ShuttingDown(_) | Self::SandboxEnded => Code::FAILED_PRECONDITION,
            Self::Malformed { .. } => Code::INVALID_ARGUMENT,
            Self::Panicked(_) => Code::INTERNAL,
            Self::Stdio(error) => error.code(),
            Self::Hook(error) => error.code(),
            Self::Agent(error) => error.code(),
            Self::Resize(error) => error.code(),
            Self::Plan(error) => error.code(),
            Self::Cdi(error) => error.code(),
            Self::Mount(error) => error.code(),
            Self::Network(error) => error.code(),
            Self::Assign(error) => error.code(),
        }
    }
}

impl Coded for HookError {
    fn code(&self) -> Code {
        match self {
            Self::Run { source, .. } => of_io(source),
            Self::Failed { .. } | Self::Slow { .. } => Code::INTERNAL,
        }
    }
}

impl Coded for NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::Host(_) | Self::Interface { .. } => Code::INVALID_ARGUMENT,
            Self::Namespace { source, .. } | Self::Tap { source, .. } => of_io(source),
            Self::Socket(_) | Self::Netlink { .. } => Code::INTERNAL,
        }
    }
}

impl Coded for ResizeError {
    fn code(&self) -> Code {
        match self {
            Self::Plan(error) => error.code(),
            Self::Request(_) | Self::Vcpus(kiai_vmm::VcpuError::Ended(_)) => Code::FAILED_PRECONDITION,
            Self::Memory(_) | Self::Vcpus(_) => Code::RESOURCE_EXHAUSTED,
            Self::Agent(error) => error.code(),
        }
    }
}

impl Coded for PlanError {
    fn code(&self) -> Code {
        match self {
            Self::NoSource { .. } => Code::NOT_FOUND,
            Self::Hooks(_) | Self::Namespace { .. } => Code::UNIMPLEMENTED,
            _ => Code::INVALID_ARGUMENT,
        }
    }
}

impl Coded for SandboxBootError {
    fn code(&self) -> Code {
        match self {
            Self::File { source, .. } => of_io(source),
            // A damaged kernel or an unsupported size.
            Self::Build(kiai_vmm::BootError::Load(_) | kiai_vmm::BootError::Config(_)) => {
                Code::INVALID_ARGUMENT
            }
            Self::Network(error) => error.code(),
            Self::Agent(error) => error.code(),
            Self::Memory(_) => Code::RESOURCE_EXHAUSTED,
            _ => Code::INTERNAL,
        }
    }
}

impl Coded for AssignError {
    fn code(&self) -> Code {
        match self {
            Self::Open { source, .. } => of_io(source),
            Self::Vfio { source, .. } => of_io(source),
            Self::AccessConflict { .. } | Self::FunctionAssigned(_) | Self::InterfaceAssigned(_) => {
                Code::FAILED_PRECONDITION
            }
            Self::Attach { .. }
            | Self::Nic { .. }
            | Self::Volume(_)
            | Self::Function(_)
            | Self::Panicked(_) => Code::INTERNAL,
            Self::Agent(error) => error.code(),
        }
    }
}

impl Coded for MountError {
    fn code(&self) -> Code {
        of_io(&self.source)
    }
}

impl Coded for StdioError {
    fn code(&self) -> Code {
        match self {
            Self::Uri { .. } => Code::INVALID_ARGUMENT,
            Self::Open { source, .. } | Self::Logger { source, .. } => of_io(source),
            Self::Secret(_) | Self::Connect { .. } => Code::INTERNAL,
        }
    }
}

/// An error of the agent keeps its status code.
impl Coded for AgentError {
    fn code(&self) -> Code {
        self.answer().unwrap_or(Code::INTERNAL)
    }
}

fn of_io(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::NotFound => Code::NOT_FOUND,
        io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            Code::INVALID_ARGUMENT
        }
        io::ErrorKind::PermissionDenied => Code::PERMISSION_DENIED,
        _ => Code::INTERNAL,
    }
}

impl From<CreateError> for RpcError {
    fn from(error: CreateError) -> Self {
        Self { code: error.code(), message: chain(&error) }
    }
}

impl From<TaskError> for RpcError {
    fn from(error: TaskError) -> Self {
        Self { code: error.code(), message: chain(&error) }
    }
}

impl From<PlanError> for RpcError {
    fn from(error: PlanError) -> Self {
        Self { code: error.code(), message: chain(&error) }
    }
}

impl From<RpcError> for ttrpc::Error {
    fn from(error: RpcError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code, error.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_kernel_is_not_found_and_named() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error = SandboxBootError::File { file: "kernel", path: "/k".into(), source };
        let failure = RpcError::from(CreateError::from(error));
        assert_eq!(failure.code(), Code::NOT_FOUND);
        assert!(failure.to_string().contains("kernel /k"), "{failure}");
    }

    #[test]
    fn what_the_agent_answers_keeps_its_code() {
        let refused = AgentError::Refused {
            call: "StartContainer",
            code: Code::INVALID_ARGUMENT,
            message: "no such file: /bin/x".into(),
        };
        let failure = RpcError::from(TaskError::from(refused));
        assert_eq!(failure.code(), Code::INVALID_ARGUMENT);
        assert!(failure.to_string().contains("/bin/x"));
    }

    #[test]
    fn a_signal_to_what_has_ended_finds_nothing() {
        assert_eq!(RpcError::from(TaskError::Finished("container c".into())).code(), Code::NOT_FOUND);
    }
}
