//! What a program was asked for, on standard output, and what it remarks beside it: not its log.
//!
//! `println!` and `eprintln!` panic when nobody reads any more, as after `| head -1`.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Writes to standard output. A reader that has had enough, such as `head`, is no error: there is nobody left
/// to write for.
pub fn write(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Writes a line to standard error, if there is anybody to read it.
pub fn remark(line: Arguments<'_>) {
    let _nobody_reads = writeln!(io::stderr(), "{line}");
}
