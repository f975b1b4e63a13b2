//! Giving back what only starting needed.

use std::fs;

use rustix::mm::{Advice, madvise};

/// Gives back the memory of start-up: pages of code that ran once (reading settings, loading eBPF, the tests that the
/// cryptography runs of itself) and the allocator's free memory. Code that is needed again is mapped again from the page
/// cache when it runs. On every node this is memory that pods can have.
pub fn give_back_start_up() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(code_of_a_file) {
        // SAFETY: the range is a mapping of this process that is file-backed, private, executable and not writable, so
        // its pages are as they are in the file: code has no relocations (`-z text` is the linker's default for our
        // targets), and a page that is dropped is read again as it was. No thread unmaps code meanwhile. There is no
        // safe way: `madvise` can drop data, too.
        #[allow(unsafe_code)]
        let _kept = unsafe { madvise(start as *mut _, length, Advice::LinuxDontNeed) };
    }
    // SAFETY: no arguments that could be wrong; the allocator locks itself. There is no safe way: it is a C function.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Start and length of a mapping of code (`proc_pid_maps(5)`).
fn code_of_a_file(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (range, permissions, path) = (fields.next()?, fields.next()?, fields.nth(3)?);
    if permissions != "r-xp" || !path.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_given_back() {
        let of = |line| code_of_a_file(line);
        assert_eq!(of("1000-3000 r-xp 00001000 fe:00 77 /usr/bin/mesh-agent"), Some((0x1000, 0x2000)));
        assert_eq!(of("1000-3000 r--p 00001000 fe:00 77 /usr/bin/mesh-agent"), None, "may be relocated data");
        assert_eq!(of("1000-3000 rw-p 00001000 fe:00 77 /usr/bin/mesh-agent"), None);
        assert_eq!(of("1000-3000 r-xp 00000000 00:00 0 [vdso]"), None);
        assert_eq!(of("1000-3000 r-xp 00000000 00:00 0"), None);
        assert_eq!(of("garbage"), None);
    }

    #[test]
    fn the_program_runs_on_with_less() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        give_back_start_up();
        assert!(resident() < before, "{before} kB before");
    }
}
