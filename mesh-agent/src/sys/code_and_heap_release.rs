//! Gives back memory that is seldom needed.

use std::fs;

use rustix::mm::{Advice, madvise};

/// Gives back memory that only rare work needs: code, by [`release_code_pages`], and the allocator's free
/// memory.
pub fn release_code_pages_and_heap() {
    release_code_pages();
    // SAFETY: no arguments that could be wrong; the allocator locks itself. There is no safe way: it is a C
    // function.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives back pages of code. Most of it ran once (reading settings, loading eBPF, the cryptography's
/// self-tests, enrolling a pod) or for a moment (talking to the control plane). What is needed again is
/// mapped from the page cache when it is used, within a fraction of a millisecond for all that a busy proxy
/// needs; the rest the kernel can take from the cache when pods need memory.
pub fn release_code_pages() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(unchanged_part_of_a_file) {
        // SAFETY: the range is a private mapping of a file by this process, and its pages are as they are in
        // the file: it is not writable, and it is either code, which has no relocations (`-z text` is the
        // linker's default for our targets), or the constants at the file's start, which the linker keeps
        // apart from what is relocated. So a page that is dropped is read again as it was. No thread unmaps
        // code meanwhile. There is no safe way: `madvise` can drop data, too.
        #[allow(unsafe_code)]
        let _kept = unsafe { madvise(start as *mut _, length, Advice::LinuxDontNeed) };
    }
}

/// Returns start and length of a mapping of code, or of the constants at the start of a file
/// (`proc_pid_maps(5)`).
fn unchanged_part_of_a_file(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let at_start = u64::from_str_radix(offset, 16).ok()? == 0;
    let unchanged = permissions == "r-xp" || permissions == "r--p" && at_start;
    if !unchanged || !fields.nth(2)?.starts_with('/') {
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
    fn only_what_is_as_in_its_file_is_given_back() {
        let of = unchanged_part_of_a_file;
        assert_eq!(of("1000-3000 r-xp 00001000 fe:00 77 /usr/bin/mesh-agent"), Some((0x1000, 0x2000)));
        assert_eq!(of("1000-3000 r--p 00000000 fe:00 77 /usr/bin/mesh-agent"), Some((0x1000, 0x2000)));
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
        release_code_pages_and_heap();
        assert!(resident() < before, "{before} kB before");
    }
}
