//! What a task says: on standard output what it was asked for, on standard error what it remarks. Neither
//! ends it when nobody reads any more, so that a lab or a cluster is taken down all the same.

/// Writes a line to standard output.
macro_rules! say {
    ($($words:tt)*) => { $crate::say::text(&format!("{}\n", format_args!($($words)*))) };
}

/// Writes a line to standard error.
macro_rules! remark {
    ($($words:tt)*) => { mesh_log::remark(format_args!($($words)*)) };
}

/// Writes to standard output. That it can't be done is said on standard error.
pub fn text(text: &str) {
    if let Err(error) = mesh_log::write(text) {
        remark!("error: can't write to standard output: {error}");
    }
}
