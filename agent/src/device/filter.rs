//! Compiles device rules into a BPF program (BPF_PROG_TYPE_CGROUP_DEVICE). Pure.
//!
//! The kernel runs the program whenever a process of the cgroup opens or makes a device node, with the request
//! (`struct bpf_cgroup_dev_ctx`: access and type, major, minor); 1 allows it, 0 is EPERM. The program goes through the
//! rules from the last to the first, because the last one decides: a rule that allows takes its letters out of the
//! access that is undecided, a rule that denies one of them ends the search. Instructions as in the kernel's
//! bpf/standardization/instruction-set.rst.

use super::DeviceKind;
use super::rule::Rule;

/// The most rules of one program: far fewer than the kernel accepts, far more than specs have.
pub const MAX_RULES: usize = 4096;

/// Operation codes: class, source and operation in one byte.
mod op {
    /// Loads 32 bits of memory into a register (BPF_LDX | BPF_MEM | BPF_W).
    pub(super) const LOAD: u8 = 0x61;
    /// Sets a register to a constant (BPF_ALU | BPF_MOV | BPF_K).
    pub(super) const SET: u8 = 0xb4;
    /// Copies a register (BPF_ALU | BPF_MOV | BPF_X).
    pub(super) const COPY: u8 = 0xbc;
    /// Ands a register with a constant (BPF_ALU | BPF_AND | BPF_K).
    pub(super) const AND: u8 = 0x54;
    /// Shifts a register right by a constant (BPF_ALU | BPF_RSH | BPF_K).
    pub(super) const SHIFT_RIGHT: u8 = 0x74;
    /// Jumps if a register equals a constant (BPF_JMP32 | BPF_JEQ | BPF_K).
    pub(super) const JUMP_EQUAL: u8 = 0x16;
    /// Jumps if a register differs from a constant (BPF_JMP32 | BPF_JNE | BPF_K).
    pub(super) const JUMP_UNEQUAL: u8 = 0x56;
    /// Returns register 0 (BPF_JMP | BPF_EXIT).
    pub(super) const EXIT: u8 = 0x95;
}

/// The register with the program's result.
const RESULT: u8 = 0;
/// The register with the address of the program's argument.
const CONTEXT: u8 = 1;
/// The device's type; at first with the requested access in the upper half.
const TYPE: u8 = 2;
/// The part of the requested access that no rule has decided yet.
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// One instruction in the kernel's memory layout.
type Instruction = u64;

fn instruction(code: u8, (to, from): (u8, u8), offset: i16, constant: u32) -> Instruction {
    let ([o0, o1], [c0, c1, c2, c3]) = (offset.to_ne_bytes(), constant.to_ne_bytes());
    u64::from_ne_bytes([code, from << 4 | to, o0, o1, c0, c1, c2, c3])
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(op::SET, (RESULT, 0), 0, allow.into()), instruction(op::EXIT, (0, 0), 0, 0)]
}

/// Skips `over` instructions unless the register equals `constant`.
fn unless(register: u8, constant: u32, over: usize) -> Instruction {
    let over = i16::try_from(over).expect("a rule is a handful of instructions");
    instruction(op::JUMP_UNEQUAL, (register, 0), over, constant)
}

/// Compiles `rules`, at most [`MAX_RULES`] of them.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(op::LOAD, (TYPE, CONTEXT), 0, 0),
        instruction(op::COPY, (OPEN, TYPE), 0, 0),
        instruction(op::AND, (TYPE, 0), 0, 0xffff),
        instruction(op::SHIFT_RIGHT, (OPEN, 0), 0, 16),
        instruction(op::LOAD, (MAJOR, CONTEXT), 4, 0),
        instruction(op::LOAD, (MINOR, CONTEXT), 8, 0),
        // A request without any access only asks whether the device exists.
        unless(OPEN, 0, 2),
    ];
    program.extend(answer(true));
    for rule in rules.iter().rev() {
        program.extend(decide(rule));
    }
    program.extend(answer(false));
    program
}

/// The instructions of one rule, followed by those of the next.
fn decide(rule: &Rule) -> Vec<Instruction> {
    let access = u32::from(rule.access.bits());
    let mut verdict = if rule.allow {
        vec![instruction(op::AND, (OPEN, 0), 0, !access), unless(OPEN, 0, 2)]
    } else {
        vec![
            instruction(op::COPY, (RESULT, OPEN), 0, 0),
            instruction(op::AND, (RESULT, 0), 0, access),
            instruction(op::JUMP_EQUAL, (RESULT, 0), 2, 0),
        ]
    };
    verdict.extend(answer(rule.allow));

    let kind = rule.kind.map(|kind| match kind {
        DeviceKind::Block => 1,
        DeviceKind::Character => 2,
    });
    let conditions = [(TYPE, kind), (MAJOR, rule.major), (MINOR, rule.minor)];
    let conditions: Vec<_> =
        conditions.iter().filter_map(|&(register, value)| Some((register, value?))).collect();
    let mut decision: Vec<_> = conditions
        .iter()
        .enumerate()
        .map(|(index, &(register, value))| {
            unless(register, value, conditions.len() - index - 1 + verdict.len())
        })
        .collect();
    decision.append(&mut verdict);
    decision
}

#[cfg(test)]
mod tests;
