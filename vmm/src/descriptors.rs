//! Room for a machine's file descriptors.

/// More than a machine with a few devices has open.
const ROOM: i32 = 256;

/// Makes the process's table of open files as large as a machine needs it. Call it while the process has one thread:
/// a process of several threads whose table grows waits for a grace period of RCU each time (fs/file.c,
/// `expand_fdtable`), ten milliseconds in which the machine is not built. Where the limit on open files is lower,
/// nothing is done.
pub fn reserve() {
    // The table keeps its size when the descriptor is closed.
    drop(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), ROOM - 1));
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_has_room_afterwards() {
        super::reserve();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        assert!(size.trim().parse::<i32>().unwrap() >= super::ROOM, "{size}");
    }
}
