use std::sync::mpsc;

use super::*;
use crate::line::Format;

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Written {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        assert!(
            piece.len() <= LONGEST_LINE && piece.ends_with(b"\n"),
            "whole lines, no more than a pipe takes"
        );
        self.0.lock().unwrap().extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output that takes nothing until it is let go.
struct Stuck(mpsc::Receiver<()>, Written);

impl Write for Stuck {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let _let_go = self.0.recv();
        self.1.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output that is gone, or that somebody has made non-blocking, until it is well again.
struct Broken(Arc<Mutex<Option<io::ErrorKind>>>, Written);

impl Write for Broken {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match *self.0.lock().unwrap() {
            Some(kind) => Err(kind.into()),
            None => self.1.write(piece),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn line(text: &str) -> Line {
    let mut line = Line::of_fields(Format::Text);
    line.text("x", text);
    line
}

fn start(output: impl Write + Send + 'static) -> Sink {
    Sink::start("test", output, Duration::ZERO, |lines| {
        let mut line = Line::of_fields(Format::Text);
        line.number("lost", lines);
        line
    })
    .unwrap()
}

/// What lines of loss in a text add up to.
fn told(text: &str) -> u64 {
    text.lines().filter_map(|line| line.strip_prefix("lost=")?.parse::<u64>().ok()).sum()
}

#[test]
fn lines_of_all_workers_arrive_whole_and_the_last_ones_too() {
    let written = Written::default();
    let sink = start(written.clone());
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let sink = &sink;
            scope.spawn(move || (0..1000).for_each(|at| sink.push(line(&format!("{worker}-{at}")))));
        }
    });
    drop(sink);
    let text = written.text();
    for worker in ["x=0-", "x=1-"] {
        let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(worker)).collect();
        assert!(lines.iter().enumerate().all(|(at, line)| *line == at.to_string()));
        assert_eq!(lines.len(), 1000);
    }
}

#[test]
fn an_output_that_is_stuck_loses_lines_and_holds_nobody_up() {
    let (let_go, stuck) = mpsc::channel();
    let written = Written::default();
    let sink = start(Stuck(stuck, written.clone()));
    let (all, started) = (100_000_u64, Instant::now());
    (0..all).for_each(|at| sink.push(line(&format!("{at:0500}"))));
    assert!(!sink.flush(Duration::from_millis(50)), "nothing was written");
    assert!(started.elapsed() < Duration::from_secs(10), "nobody waited: {:?}", started.elapsed());
    let (lost, held) = (sink.lost(), sink.0.lock().text.len());
    assert!(lost > 80_000 && held <= MOST_BYTES && sink.0.lock().lines <= MOST_LINES, "{lost} {held}");
    // It flows again: what waited comes, and how much did not.
    drop(let_go);
    assert!(sink.flush(Duration::from_secs(10)));
    let text = written.text();
    assert_eq!(text.lines().filter(|line| line.starts_with("x=")).count() as u64, all - lost);
    assert_eq!(told(&text), lost);
    sink.push(line("after"));
    drop(sink);
    assert!(written.text().ends_with("\nx=after\n"), "told once");
}

#[test]
fn the_end_waits_for_a_stuck_output_for_a_moment_only() {
    let (let_go, stuck) = mpsc::channel();
    let sink = start(Stuck(stuck, Written::default()));
    sink.push(line("x"));
    let started = Instant::now();
    drop(sink);
    assert!(started.elapsed() < 5 * LAST_WRITE, "{:?}", started.elapsed());
    drop(let_go);
}

#[test]
fn what_an_output_that_is_gone_did_not_take_is_counted_and_told_when_it_is_back() {
    let (state, written) = (Arc::new(Mutex::new(Some(io::ErrorKind::BrokenPipe))), Written::default());
    let sink = start(Broken(Arc::clone(&state), written.clone()));
    (0..1000).for_each(|_| sink.push(line("gone")));
    assert!(sink.flush(Duration::from_secs(10)));
    assert_eq!(sink.lost(), 1000);
    *state.lock().unwrap() = None;
    sink.push(line("back"));
    drop(sink);
    assert_eq!(written.text(), "x=back\nlost=1000\n");
}

#[test]
fn an_output_that_others_made_non_blocking_is_waited_for() {
    let (state, written) = (Arc::new(Mutex::new(Some(io::ErrorKind::WouldBlock))), Written::default());
    let sink = start(Broken(Arc::clone(&state), written.clone()));
    sink.push(line("patience"));
    assert!(!sink.flush(Duration::from_millis(50)));
    *state.lock().unwrap() = None;
    assert!(sink.flush(Duration::from_secs(10)));
    assert_eq!((written.text().as_str(), sink.lost()), ("x=patience\n", 0));
}

#[test]
fn what_one_peer_causes_is_counted_and_the_count_comes_by_itself() {
    let written = Written::default();
    let sink = start(written.clone());
    let source = |port: u16| Source::new("denied", &format!("10.0.0.1:{port}"), "web");
    (0..1000).for_each(|port| sink.push_of(source(port), || line("denied")));
    assert!(sink.flush(Duration::from_secs(10)), "a flush tells what is counted");
    assert_eq!(written.text(), "x=denied\nx=denied count=999\n");
    (0..10).for_each(|port| sink.push_of(source(port), || line("denied")));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !written.text().ends_with("count=10\n") {
        assert!(Instant::now() < deadline, "{}", written.text());
        std::thread::sleep(Duration::from_millis(10));
    }
}
