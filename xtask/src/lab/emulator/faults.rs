//! Faults of QEMU's emulation of SVM, corrected in the compiled program: what happens is in `tests/lab/README.md`.
//! Knows nothing of packages and files.

/// A fault, as the instructions that have it.
struct Fault {
    /// The function or table that has it.
    name: &'static str,
    /// The instructions or data; `..` is a byte of an offset, which differs between versions.
    pattern: &'static [&'static str],
    /// Changes the instructions, which are exactly as long as the pattern.
    correct: fn(&mut [u8]),
}

const FAULTS: [Fault; 4] = [INJECTION, IGNNE, WINDOW, PAUSE];

/// The part of `helper_vmrun` that injects an interrupt into the guest (`target/i386/tcg/system/svm_helper.c`, the case
/// `SVM_EVTINJ_TYPE_INTR`).
///
/// The interrupt is delivered at once, but `exception_index` keeps its vector. If the emulator leaves its inner loop
/// before something resets it (the instruction budget is used up, another thread asks for the CPU), it takes the vector
/// for an exception still to be delivered: the guest gets the interrupt a second time, wherever it is and whether or
/// not it has interrupts disabled, and waits for ever for a lock that it holds. Nothing reads the value before that, so
/// it need not be written.
const INJECTION: Fault = Fault {
    name: "helper_vmrun",
    pattern: &[
        "41 0f b6 f4",                      // movzbl %r12b, %esi: the vector
        "44 89 ab .. .. .. ..",             // mov %r13d, error_code
        "89 b3 .. .. .. ..",                // mov %esi, exception_index
        "c7 83 .. .. .. .. 00 00 00 00",    // movl $0, exception_is_int
        "48 c7 83 .. .. .. .. ff ff ff ff", // movq $-1, exception_next_eip
    ],
    correct: |code| code[11..17].copy_from_slice(&[0x66, 0x0f, 0x1f, 0x44, 0, 0]), // nopw 0(%rax,%rax)
};

/// `cpu_clear_ignne` (`target/i386/tcg/system/fpu_helper.c`), by which the end of an FPU exception is told to the
/// first CPU: a bit of its `hflags2`.
///
/// Every XRSTOR and FXRSTOR of any CPU calls it, on the thread of that CPU, and it reads the flags and writes them back
/// in two steps. What the first CPU's own thread changes in between is undone: at a #VMEXIT, that nested paging is off;
/// at STGI, that interrupts may come. With LOCK, nothing is.
const IGNNE: Fault = Fault {
    name: "cpu_clear_ignne",
    pattern: &[
        "81 a0 .. .. .. .. 7f ff ff ff", // andl $0xffffff7f, hflags2(%rax)
        "48 83 c4 08",                   // add $8, %rsp
    ],
    correct: |code| {
        let offset = [code[2], code[3], code[4], code[5]];
        code[..4].copy_from_slice(&[0xf0, 0x0f, 0xba, 0xb0]); // lock btrl $7, hflags2(%rax)
        code[4..8].copy_from_slice(&offset);
        code[8..10].copy_from_slice(&[7, 0x90]); // nop
    },
};

/// The part of `helper_vmrun` that asks for the exit at which the guest takes interrupts again: bit 8 of the CPU's
/// `interrupt_request`.
///
/// It is set in two steps and without the emulator's lock, under which another thread sets the bit of an interrupt. If
/// that comes in between, it is undone: the interrupt waits until there is another one. If it was that of the timer, by
/// which the lab's kernel would have set the timer anew, there may be none. With LOCK, nothing is undone.
const WINDOW: Fault = Fault {
    name: "helper_vmrun's virtual interrupt",
    pattern: &[
        "81 8b .. .. ff ff 00 01 00 00", // orl $0x100, interrupt_request(%rbx)
        "f6 83 .. .. .. .. 20",          // testb $0x20, hflags(%rbx)
    ],
    correct: |code| {
        let offset = [code[2], code[3], code[4], code[5]];
        code[..4].copy_from_slice(&[0xf0, 0x0f, 0xba, 0xab]); // lock btsl $8, interrupt_request(%rbx)
        code[4..8].copy_from_slice(&offset);
        code[8..10].copy_from_slice(&[8, 0x90]); // nop
    },
};

/// What the emulator says of CPUID leaf 0x8000000a, EDX (`feature_word_info[FEAT_SVM]` in `target/i386/cpu.c`): leaf,
/// no subleaf, EDX, and the features it has: nested paging, virtual GIF and the check of SVM instructions' addresses.
///
/// It does leave the guest at a PAUSE that is intercepted, but does not say so, and KVM intercepts none on a processor
/// without a pause filter, which no processor that KVM meets lacks. A vCPU that waits for another one of the same CPU
/// then keeps that CPU until the scheduler's next tick. The filter and its threshold are added; the emulator leaves at
/// each PAUSE, and not after a number of them.
const PAUSE: Fault = Fault {
    name: "the list of SVM features",
    pattern: &[
        "0a 00 00 80", // the leaf
        "00 00 00 00 00 00 00 00",
        "02 00 00 00", // EDX
        "01 00 01 10", // the features
    ],
    correct: |data| data[17] |= 1 << 2 | 1 << 4, // bits 10 and 12
};

/// Corrects each fault that is found in `code` exactly once; says which are not.
pub(super) fn correct(code: &mut [u8]) -> Vec<String> {
    let mut not_found = Vec::new();
    for fault in &FAULTS {
        let pattern = fault.bytes();
        match &places(code, &pattern)[..] {
            [place] => (fault.correct)(&mut code[*place..][..pattern.len()]),
            places => not_found.push(format!("{} was found at {} places", fault.name, places.len())),
        }
    }
    not_found
}

impl Fault {
    /// The pattern's bytes; none where any will do.
    fn bytes(&self) -> Vec<Option<u8>> {
        let bytes = self.pattern.iter().flat_map(|instruction| instruction.split(' '));
        bytes.map(|byte| u8::from_str_radix(byte, 16).ok()).collect()
    }
}

/// Where `pattern` is in `code`.
fn places(code: &[u8], pattern: &[Option<u8>]) -> Vec<usize> {
    let is_here = |window: &[u8]| {
        window.iter().zip(pattern).all(|(byte, known)| known.is_none_or(|known| known == *byte))
    };
    let windows = code.windows(pattern.len()).enumerate();
    windows.filter_map(|(place, window)| is_here(window).then_some(place)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GCC made of them in QEMU 10.0.2.
    const INJECTS: [u8; 38] = [
        0x41, 0x0f, 0xb6, 0xf4, 0x44, 0x89, 0xab, 0xe0, 0x33, 0, 0, 0x89, 0xb3, 0x10, 0xd7, 0xff, 0xff, 0xc7,
        0x83, 0xe4, 0x33, 0, 0, 0, 0, 0, 0, 0x48, 0xc7, 0x83, 0xe8, 0x33, 0, 0, 0xff, 0xff, 0xff, 0xff,
    ];
    const CLEARS: [u8; 14] = [0x81, 0xa0, 0x74, 0x2c, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0x48, 0x83, 0xc4, 0x08];

    const FEATURES: [u8; 24] =
        [0x0a, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 1, 0x10, 0, 0, 0, 0];
    const ASKS: [u8; 17] = [0x81, 0x8b, 0x10, 0xd5, 0xff, 0xff, 0, 1, 0, 0, 0xf6, 0x83, 0xb2, 0, 0, 0, 0x20];

    #[test]
    fn the_vector_is_not_written_and_nothing_else_is_changed() {
        let mut code = [&[0x90; 5][..], &INJECTS, &[0xc3; 3]].concat();
        let before = code.clone();
        assert_eq!(correct(&mut code).len(), 3);
        assert_eq!(code[16..22], [0x66, 0x0f, 0x1f, 0x44, 0, 0]);
        assert_eq!((&code[..16], &code[22..]), (&before[..16], &before[22..]));
    }

    #[test]
    fn flags_that_other_threads_write_are_changed_in_one_step() {
        let mut code = [&INJECTS[..], &CLEARS, &ASKS, &FEATURES].concat();
        assert!(correct(&mut code).is_empty());
        let (clears, asks) = code[INJECTS.len()..].split_at(CLEARS.len());
        assert_eq!(clears, [0xf0, 0x0f, 0xba, 0xb0, 0x74, 0x2c, 0, 0, 7, 0x90, 0x48, 0x83, 0xc4, 0x08]);
        assert_eq!(asks[..10], [0xf0, 0x0f, 0xba, 0xab, 0x10, 0xd5, 0xff, 0xff, 8, 0x90]);
        assert_eq!(asks[10..ASKS.len()], ASKS[10..]);
    }

    #[test]
    fn the_pause_filter_is_added_to_the_features_of_svm() {
        let mut data = [&[7; 3][..], &FEATURES, &[9; 3]].concat();
        assert_eq!(correct(&mut data).len(), FAULTS.len() - 1);
        assert_eq!(data[3 + 16..3 + 20], 0x1001_1401_u32.to_le_bytes());
    }

    #[test]
    fn code_without_the_one_place_is_left_alone() {
        for code in [vec![0x90; 100], [INJECTS, INJECTS].concat(), vec![0xc3; 3]] {
            let mut corrected = code.clone();
            assert_eq!(correct(&mut corrected).len(), FAULTS.len());
            assert_eq!(corrected, code);
        }
    }
}
