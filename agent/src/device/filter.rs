//! Device rules as a program for the kernel: BPF_PROG_TYPE_CGROUP_DEVICE. Pure.
//!
//! The kernel runs it whenever a process of the cgroup opens or makes a device node, with what is asked
//! (`struct bpf_cgroup_dev_ctx`: access and type, major, minor); 1 lets it, 0 is EPERM. The program goes
//! through the rules from the last to the first, because the last one decides: each answers for what it names
//! of the access that is still open, a rule that denies by ending the search. Instructions as in the kernel's
//! bpf/standardization/instruction-set.rst.

use super::DeviceKind;
use super::rule::Rule;

/// Most rules of one program. Far below what the kernel accepts, far above what anybody writes.
pub const MAX_RULES: usize = 4096;

/// Operations: class, source and operation in one byte.
mod op {
    /// 32 bits of memory into a register (BPF_LDX | BPF_MEM | BPF_W).
    pub(super) const LOAD: u8 = 0x61;
    /// A constant into a register (BPF_ALU | BPF_MOV | BPF_K).
    pub(super) const SET: u8 = 0xb4;
    /// A register into a register (BPF_ALU | BPF_MOV | BPF_X).
    pub(super) const COPY: u8 = 0xbc;
    /// BPF_ALU | BPF_AND | BPF_K.
    pub(super) const AND: u8 = 0x54;
    /// BPF_ALU | BPF_RSH | BPF_K.
    pub(super) const SHIFT_RIGHT: u8 = 0x74;
    /// Jump if equal to a constant (BPF_JMP32 | BPF_JEQ | BPF_K).
    pub(super) const JUMP_EQUAL: u8 = 0x16;
    /// Jump if not (BPF_JMP32 | BPF_JNE | BPF_K).
    pub(super) const JUMP_UNEQUAL: u8 = 0x56;
    /// BPF_JMP | BPF_EXIT.
    pub(super) const EXIT: u8 = 0x95;
}

/// What the program returns in register 0.
const RESULT: u8 = 0;
/// Where its argument is.
const CONTEXT: u8 = 1;
/// The device's type, and all of the access asked for in the upper half at first.
const TYPE: u8 = 2;
/// The part of the access no rule has answered for.
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// One instruction, as the kernel has it in memory.
type Instruction = u64;

fn instruction(code: u8, (to, from): (u8, u8), offset: i16, constant: u32) -> Instruction {
    let ([o0, o1], [c0, c1, c2, c3]) = (offset.to_ne_bytes(), constant.to_ne_bytes());
    u64::from_ne_bytes([code, from << 4 | to, o0, o1, c0, c1, c2, c3])
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(op::SET, (RESULT, 0), 0, allow.into()), instruction(op::EXIT, (0, 0), 0, 0)]
}

/// Jumps over `over` instructions unless the register is `constant`.
fn unless(register: u8, constant: u32, over: usize) -> Instruction {
    let over = i16::try_from(over).expect("a rule is a handful of instructions");
    instruction(op::JUMP_UNEQUAL, (register, 0), over, constant)
}

/// The program that enforces `rules`, of which there are at most [`MAX_RULES`].
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(op::LOAD, (TYPE, CONTEXT), 0, 0),
        instruction(op::COPY, (OPEN, TYPE), 0, 0),
        instruction(op::AND, (TYPE, 0), 0, 0xffff),
        instruction(op::SHIFT_RIGHT, (OPEN, 0), 0, 16),
        instruction(op::LOAD, (MAJOR, CONTEXT), 4, 0),
        instruction(op::LOAD, (MINOR, CONTEXT), 8, 0),
        // Who only asks whether it is there asks for nothing.
        unless(OPEN, 0, 2),
    ];
    program.extend(answer(true));
    for rule in rules.iter().rev() {
        program.extend(decide(rule));
    }
    program.extend(answer(false));
    program
}

/// The instructions of one rule; past their end is the next one.
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
