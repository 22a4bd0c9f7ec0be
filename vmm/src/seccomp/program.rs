//! From a list to the program that the kernel runs at each system call of a thread.
//!
//! The kernel translates it anew for each thread and tries it with each call there is, which is most of what a thread
//! costs; and it runs at every KVM_RUN. So it is small: a jump a call, all to the same few ends, and those whose
//! arguments matter first, as the kernel remembers the answer for the others.

use std::io;

use libc::c_long;
use seccompiler::BpfProgram;
use seccompiler::SeccompAction;
use seccompiler::sock_filter;

use super::lists::Call;

/// AUDIT_ARCH_X86_64 (`include/uapi/linux/audit.h`).
const ARCHITECTURE: u32 = 0xc000_003e;

/// Offsets in `struct seccomp_data` (`include/uapi/linux/seccomp.h`).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Instructions (`include/uapi/linux/bpf_common.h`): of 32 bits, and of a constant.
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Offset of the lower half of an argument.
fn argument(index: u8) -> u32 {
    ARGUMENTS + 8 * u32::from(index)
}

/// Where a jump leads. BPF jumps forward only.
#[derive(Clone, Copy)]
enum To {
    /// The next instruction but one.
    Skip,
    /// The rule for the arguments of a call.
    Rule(usize),
    Allow,
    Refuse,
    Otherwise,
}

/// What programs are made of. A jump that is not taken leads to the next step.
enum Step {
    Load(u32),
    IfEqual(u32, To),
    IfAnyBit(u32, To),
    Return(SeccompAction),
}

/// A program that lets `calls` through, fails those in `refused` with EACCES, and does `otherwise` with all others.
pub(super) fn of<'a>(
    calls: impl Iterator<Item = &'a Call> + Clone,
    refused: &[c_long],
    otherwise: &SeccompAction,
) -> io::Result<BpfProgram> {
    let mut head = vec![
        Step::Load(ARCH),
        Step::IfEqual(ARCHITECTURE, To::Skip),
        Step::Return(SeccompAction::KillProcess),
        Step::Load(NUMBER),
    ];
    let mut rules = Vec::new();
    for call in calls.clone() {
        if let Some(mut rule) = rule(call)? {
            rule.push(Step::Return(otherwise.clone()));
            head.push(Step::IfEqual(number(call.number())?, To::Rule(rules.len())));
            rules.push(rule);
        }
    }
    for call in calls.filter(|call| matches!(call, Call::Any(_))) {
        head.push(Step::IfEqual(number(call.number())?, To::Allow));
    }
    for &call in refused {
        head.push(Step::IfEqual(number(call)?, To::Refuse));
    }
    head.push(Step::Return(otherwise.clone()));
    assemble(head, rules, otherwise.clone())
}

fn number(call: c_long) -> io::Result<u32> {
    u32::try_from(call).map_err(io::Error::other)
}

/// What the arguments of a call must be; none if they may be anything.
fn rule(call: &Call) -> io::Result<Option<Vec<Step>>> {
    let half = |value: u64| u32::try_from(value).map_err(io::Error::other);
    let mut steps = Vec::new();
    match *call {
        Call::Any(_) => return Ok(None),
        Call::OneOf(_, index, values) => {
            steps.push(Step::Load(argument(index)));
            for &value in values {
                steps.push(Step::IfEqual(half(value)?, To::Allow));
            }
        }
        Call::Without(_, index, bits) => {
            let bits = half(bits)?;
            steps.push(Step::Load(argument(index)));
            steps.push(Step::IfAnyBit(bits, To::Otherwise));
            steps.push(Step::Return(SeccompAction::Allow));
        }
        Call::OfThisProcess(_) => {
            steps.push(Step::Load(argument(0)));
            steps.push(Step::IfEqual(std::process::id(), To::Allow));
        }
    }
    Ok(Some(steps))
}

/// Puts the rules and then the ends behind the head.
fn assemble(head: Vec<Step>, rules: Vec<Vec<Step>>, otherwise: SeccompAction) -> io::Result<BpfProgram> {
    let mut starts = Vec::new();
    let mut steps = head;
    for rule in rules {
        starts.push(steps.len());
        steps.extend(rule);
    }
    let ends = steps.len();
    let refusal = SeccompAction::Errno(libc::EACCES.cast_unsigned());
    steps.extend([SeccompAction::Allow, refusal, otherwise].map(Step::Return));

    let place = |from: usize, to| match to {
        To::Skip => from + 2,
        To::Rule(rule) => starts[rule],
        To::Allow => ends,
        To::Refuse => ends + 1,
        To::Otherwise => ends + 2,
    };
    let jump = |code, k, from, to| {
        let over = u8::try_from(place(from, to) - from - 1).map_err(io::Error::other)?;
        Ok(sock_filter { code, jt: over, jf: 0, k })
    };
    let plain = |code, k| Ok(sock_filter { code, jt: 0, jf: 0, k });
    let instruction = |(at, step)| match step {
        Step::Load(offset) => plain(LOAD, offset),
        Step::IfEqual(value, to) => jump(JUMP_IF_EQUAL, value, at, to),
        Step::IfAnyBit(bits, to) => jump(JUMP_IF_ANY_BIT, bits, at, to),
        Step::Return(action) => plain(RETURN, action.into()),
    };
    steps.into_iter().enumerate().map(instruction).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: [Call; 4] = [
        Call::Any(libc::SYS_read),
        Call::OneOf(libc::SYS_ioctl, 1, &[0xae80, 0x8090_ae81]),
        Call::Without(libc::SYS_mmap, 2, libc::PROT_EXEC.cast_unsigned() as u64),
        Call::OfThisProcess(libc::SYS_tgkill),
    ];

    /// What the kernel would do: the value of the program for a call.
    fn run(program: &BpfProgram, architecture: u32, call: c_long, arguments: [u64; 3]) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let jump = |taken: bool| usize::from(if taken { jt } else { jf });
            at += 1;
            match code {
                LOAD if k == NUMBER => loaded = u32::try_from(call).unwrap(),
                LOAD if k == ARCH => loaded = architecture,
                LOAD => {
                    let argument = arguments[(k as usize - 16) / 8];
                    loaded = u32::try_from(argument & 0xffff_ffff).unwrap();
                    assert_eq!(k % 8, 0, "the lower half");
                }
                JUMP_IF_EQUAL => at += jump(loaded == k),
                JUMP_IF_ANY_BIT => at += jump(loaded & k != 0),
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn a_program_decides_by_call_and_arguments() {
        let program = of(CALLS.iter(), &[libc::SYS_openat], &SeccompAction::Trap).unwrap();
        let answer = |call, arguments| run(&program, ARCHITECTURE, call, arguments);
        let (allow, trap) = (u32::from(SeccompAction::Allow), u32::from(SeccompAction::Trap));
        assert_eq!(answer(libc::SYS_read, [u64::MAX; 3]), allow);
        assert_eq!(answer(libc::SYS_openat, [0; 3]), u32::from(SeccompAction::Errno(13)));
        assert_eq!(answer(libc::SYS_write, [0; 3]), trap);
        // The 32-bit numbers of x86-64.
        assert_eq!(answer(libc::SYS_read | 1 << 30, [0; 3]), trap);
        assert_eq!(answer(libc::SYS_ioctl, [0, 0xae80, 0]), allow);
        assert_eq!(answer(libc::SYS_ioctl, [0, 7 << 32 | 0x8090_ae81, 0]), allow);
        assert_eq!(answer(libc::SYS_ioctl, [0xae80, 0xae01, 0xae80]), trap);
        assert_eq!(answer(libc::SYS_mmap, [4, 4, 3]), allow);
        assert_eq!(answer(libc::SYS_mmap, [0, 0, 5]), trap);
        let this = std::process::id();
        assert_eq!(answer(libc::SYS_tgkill, [this.into(), 1, 2]), allow);
        assert_eq!(answer(libc::SYS_tgkill, [u64::from(this) + 1, this.into(), 0]), trap);
        let kill = u32::from(SeccompAction::KillProcess);
        assert_eq!(run(&program, 0x4000_0003, libc::SYS_read, [0; 3]), kill, "i386");
    }

    #[test]
    fn what_no_jump_can_cross_is_an_error() {
        let calls: Vec<Call> = (0..300).map(Call::Any).collect();
        assert!(of(calls.iter(), &[], &SeccompAction::Trap).is_err());
        assert!(of(calls[..200].iter(), &[], &SeccompAction::Trap).is_ok());
    }
}
