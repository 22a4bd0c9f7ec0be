//! The program against the rules it was made from: run by an interpreter of the few instructions it uses.

use super::*;
use crate::device::rule::{Access, Identity, default_rules, granted};
use proptest::prelude::*;

/// Runs a program as the kernel would. Panics where the kernel's verifier would refuse it: an unknown
/// operation, a jump backwards or out of the program, a register that was never written, a result that is
/// neither 0 nor 1.
fn run(program: &[Instruction], context: [u32; 3]) -> bool {
    let mut registers: [Option<u32>; 6] = [None; 6];
    let mut at = 0;
    loop {
        let [code, both, o0, o1, c0, c1, c2, c3] = program[at].to_ne_bytes();
        let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
        let (offset, constant) = (i16::from_ne_bytes([o0, o1]), u32::from_ne_bytes([c0, c1, c2, c3]));
        at += 1;
        let value = || registers[to].expect("written before");
        match code {
            op::LOAD => {
                assert_eq!(from, usize::from(CONTEXT));
                registers[to] = Some(context[usize::try_from(offset).unwrap() / 4]);
            }
            op::SET => registers[to] = Some(constant),
            op::COPY => registers[to] = Some(registers[from].expect("written before")),
            op::AND => registers[to] = Some(value() & constant),
            op::SHIFT_RIGHT => registers[to] = Some(value() >> constant),
            op::JUMP_EQUAL if value() == constant => at += usize::try_from(offset).unwrap(),
            op::JUMP_UNEQUAL if value() != constant => at += usize::try_from(offset).unwrap(),
            op::JUMP_EQUAL | op::JUMP_UNEQUAL => {}
            op::EXIT => match registers[usize::from(RESULT)] {
                Some(0) => return false,
                Some(1) => return true,
                other => panic!("the program returned {other:?}"),
            },
            other => panic!("operation {other:#x}"),
        }
    }
}

fn lets(rules: &[Rule], (kind, major, minor): (DeviceKind, u32, u32), access: u8) -> bool {
    let typ = if kind == DeviceKind::Block { 1 } else { 2 };
    run(&program(rules), [u32::from(access) << 16 | typ, major, minor])
}

/// The specification, in as few words as possible.
fn should(rules: &[Rule], (kind, major, minor): (DeviceKind, u32, u32), access: u8) -> bool {
    let device = Identity { kind, major, minor };
    access & !granted(rules, device).bits() == 0
}

fn kinds() -> impl Strategy<Value = DeviceKind> {
    prop_oneof![Just(DeviceKind::Block), Just(DeviceKind::Character)]
}

/// Few numbers, so that rules and devices meet; the greatest, where signs go wrong.
fn numbers() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..4, 1 => Just(u32::MAX), 1 => Just(1 << 31)]
}

prop_compose! {
    fn any_rule()(
        allow: bool,
        kind in prop::option::of(kinds()),
        major in prop::option::of(numbers()),
        minor in prop::option::of(numbers()),
        access in 1u8..8,
    ) -> Rule {
        let letters = [(1, Access::MKNOD), (2, Access::READ), (4, Access::WRITE)];
        let access = letters.iter().filter(|(bit, _)| access & bit != 0);
        Rule { allow, kind, major, minor, access: access.fold(Access::NONE, |all, (_, one)| all.with(*one)) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_program_grants_what_the_rules_grant(
        rules in prop::collection::vec(any_rule(), 0..12),
        device in (kinds(), numbers(), numbers()),
    ) {
        for access in 0..8 {
            prop_assert_eq!(lets(&rules, device, access), should(&rules, device, access), "access {}", access);
        }
    }
}

#[test]
fn without_a_rule_nothing_is_allowed_but_to_ask_for_nothing() {
    let null = (DeviceKind::Character, 1, 3);
    assert!(!lets(&[], null, Access::READ.bits()));
    assert!(lets(&[], null, 0));
}

#[test]
fn an_access_granted_by_several_rules_together_is_granted() {
    let rule = |access| Rule { allow: true, kind: None, major: None, minor: None, access };
    let rules = [rule(Access::READ), rule(Access::WRITE)];
    let disk = (DeviceKind::Block, 8, 0);
    assert!(lets(&rules, disk, Access::READ.with(Access::WRITE).bits()));
    assert!(!lets(&rules, disk, Access::ALL.bits()));
}

#[test]
fn the_rules_of_a_container_let_it_use_its_own_disk_and_no_other() {
    let deny = Rule { allow: false, kind: None, major: None, minor: None, access: Access::ALL };
    let own = Rule {
        allow: true,
        kind: Some(DeviceKind::Block),
        major: Some(254),
        minor: Some(16),
        access: Access::ALL,
    };
    let rules: Vec<_> = [deny, own].into_iter().chain(default_rules()).collect();
    let read = Access::READ.bits();
    assert!(lets(&rules, (DeviceKind::Block, 254, 16), read));
    assert!(!lets(&rules, (DeviceKind::Block, 254, 0), read));
    assert!(!lets(&rules, (DeviceKind::Character, 254, 16), read));
    assert!(lets(&rules, (DeviceKind::Character, 1, 3), Access::ALL.bits()));
    assert!(lets(&rules, (DeviceKind::Block, 254, 0), Access::MKNOD.bits()), "made, not used");
}

#[test]
fn the_longest_program_stays_within_what_the_kernel_takes() {
    let rule = Rule {
        allow: false,
        kind: Some(DeviceKind::Block),
        major: Some(1),
        minor: Some(1),
        access: Access::ALL,
    };
    assert!(program(&vec![rule; MAX_RULES]).len() <= 1_000_000);
}
