//! Asking file systems from a thread that may hang in the agent's stead.
//!
//! statvfs(3) on a dead NFS server does not return, and no signal ends it. So a worker thread asks;
//! when it does not come back, it is left to that file system, which is not asked again before the
//! worker is back, and the next file system gets a new worker.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use rollcall_protocol::Moment;
use rustix::fs::{StatVfs, statvfs};
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::time::{Instant, timeout_at};

/// How long one file system may hold up a report.
const ANSWER_WAIT: Duration = Duration::from_millis(250);
/// How long all file systems together may hold up a report.
const ALL_WAIT: Duration = Duration::from_secs(1);
/// How many workers may hang at a time.
const HANGING_MAX: usize = 16;
/// statvfs needs little.
const STACK_BYTES: usize = 64 * 1024;

/// What became of a question.
pub(super) enum Answer {
    /// The kernel's answer.
    Given(io::Result<StatVfs>),
    /// There has been none since then.
    Hangs(Moment),
    /// The question was not asked: too much hangs already, or there was no time left.
    NotAsked,
}

type Ask = fn(&Path) -> io::Result<StatVfs>;

/// Asks file systems, one after the other.
pub(super) struct Asker {
    /// How a file system is asked; the tests ask otherwise.
    ask: Ask,
    idle: Option<Worker>,
    hanging: Vec<Hanging>,
}

struct Hanging {
    point: PathBuf,
    since: Moment,
    worker: Worker,
}

impl Default for Asker {
    fn default() -> Self {
        Self::new(|point| statvfs(point).map_err(io::Error::from))
    }
}

impl Asker {
    fn new(ask: Ask) -> Self {
        Self {
            ask,
            idle: None,
            hanging: Vec::new(),
        }
    }

    /// Asks the file systems at `points`. Each has a moment to answer, all together a second.
    pub(super) async fn ask(
        &mut self,
        points: Vec<PathBuf>,
        now: Moment,
    ) -> Vec<(PathBuf, Answer)> {
        let mut answers = Vec::with_capacity(points.len());
        let mut open = VecDeque::with_capacity(points.len());
        for point in points {
            match self.hanging.iter().position(|at| at.point == point) {
                Some(position) => answers.push((point, self.ask_hanging(position))),
                None => open.push_back(point),
            }
        }
        // Those that came back from file systems which nobody asks for any more.
        self.hanging.retain(|at| at.worker.answers.is_empty());
        let deadline = Instant::now() + ALL_WAIT;
        while !open.is_empty() {
            if self.hanging.len() >= HANGING_MAX || Instant::now() >= deadline {
                answers.extend(open.drain(..).map(|point| (point, Answer::NotAsked)));
                break;
            }
            self.ask_open(&mut open, &mut answers, now, deadline).await;
        }
        answers
    }

    /// Has one worker ask the file systems of `open`, and moves those to `answers` that are done
    /// with: all of them, or up to the first that hangs.
    async fn ask_open(
        &mut self,
        open: &mut VecDeque<PathBuf>,
        answers: &mut Vec<(PathBuf, Answer)>,
        now: Moment,
        deadline: Instant,
    ) {
        let idle = self.idle.take();
        let mut worker = match idle.map_or_else(|| Worker::start(self.ask), Ok) {
            Ok(worker) => worker,
            Err(error) => {
                let point = open
                    .pop_front()
                    .map(|point| (point, Answer::Given(Err(error))));
                answers.extend(point);
                return;
            }
        };
        // A worker that has ended gives no answer either, which is seen at once below.
        let _ = worker.questions.send(open.iter().cloned().collect());
        while let Some(point) = open.pop_front() {
            let deadline = deadline.min(Instant::now() + ANSWER_WAIT);
            match timeout_at(deadline, worker.answers.recv()).await {
                Ok(Some(answer)) => answers.push((point, Answer::Given(answer))),
                Ok(None) => {
                    answers.push((point, Answer::Given(Err(thread_ended()))));
                    return;
                }
                Err(_) => {
                    tracing::warn!(
                        event = "disk_hangs",
                        mount = %point.display(),
                        "the file system does not answer statvfs; it is not asked again before it does"
                    );
                    worker.abandoned.store(true, Ordering::Release);
                    answers.push((point.clone(), Answer::Hangs(now)));
                    self.hanging.push(Hanging {
                        point,
                        since: now,
                        worker,
                    });
                    return;
                }
            }
        }
        self.idle = Some(worker);
    }

    fn ask_hanging(&mut self, position: usize) -> Answer {
        let hanging = &mut self.hanging[position];
        let answer = match hanging.worker.answers.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Empty) => return Answer::Hangs(hanging.since),
            Err(TryRecvError::Disconnected) => Err(thread_ended()),
        };
        let released = self.hanging.swap_remove(position);
        tracing::info!(
            event = "disk_answers",
            mount = %released.point.display(),
            "the file system answers again"
        );
        Answer::Given(answer)
    }
}

fn thread_ended() -> io::Error {
    io::Error::other("the asking thread ended")
}

/// A thread that asks. It ends when the asker lets go of it.
struct Worker {
    questions: std_mpsc::Sender<Vec<PathBuf>>,
    /// One for each question, in their order.
    answers: mpsc::UnboundedReceiver<io::Result<StatVfs>>,
    /// Set when nobody wants an answer any more but the one that hangs.
    abandoned: Arc<AtomicBool>,
}

impl Worker {
    fn start(ask: Ask) -> io::Result<Self> {
        let (questions, inbox) = std_mpsc::channel::<Vec<PathBuf>>();
        let (outbox, answers) = mpsc::unbounded_channel();
        let abandoned = Arc::new(AtomicBool::new(false));
        let is_abandoned = Arc::clone(&abandoned);
        thread::Builder::new()
            .name("disk-probe".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                for point in inbox.iter().flatten() {
                    let nobody_listens = outbox.send(ask(&point)).is_err();
                    if nobody_listens || is_abandoned.load(Ordering::Acquire) {
                        return;
                    }
                }
            })?;
        Ok(Self {
            questions,
            answers,
            abandoned,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tempfile::TempDir;

    use super::*;

    /// Hangs at a FIFO until somebody opens its other end.
    fn ask(point: &Path) -> io::Result<StatVfs> {
        if point.ends_with("hang") {
            drop(File::open(point)?);
        }
        statvfs("/").map_err(io::Error::from)
    }

    async fn ask_all(asker: &mut Asker, points: &[&Path], now: u64) -> Vec<Answer> {
        let points = points.iter().map(|point| point.to_path_buf()).collect();
        let now = Moment::new(Duration::from_secs(now));
        let answers = asker.ask(points, now).await;
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    #[tokio::test]
    async fn one_that_hangs_does_not_hold_up_the_others() {
        let mut asker = Asker::new(ask);
        let folder = TempDir::new().unwrap();
        let hang = folder.path().join("hang");
        mknodat(CWD, &hang, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let points = [Path::new("/"), hang.as_path(), Path::new("/tmp")];
        let first = ask_all(&mut asker, &points, 1).await;
        assert!(matches!(
            first[..],
            [Answer::Given(Ok(_)), Answer::Hangs(_), Answer::Given(Ok(_))]
        ));
        let second = ask_all(&mut asker, &points, 2).await;
        let since = Moment::new(Duration::from_secs(1));
        assert!(
            matches!(second[..], [Answer::Hangs(at), Answer::Given(Ok(_)), Answer::Given(Ok(_))] if at == since),
            "it is not asked a second time"
        );
        let gate = fs::OpenOptions::new().write(true).open(&hang).unwrap();
        let back = async {
            while !matches!(
                ask_all(&mut asker, &[&hang], 3).await[0],
                Answer::Given(Ok(_))
            ) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), back)
            .await
            .unwrap();
        assert!(asker.hanging.is_empty());
        drop(gate);
    }

    #[tokio::test]
    async fn a_worker_that_comes_back_asks_nothing_more() {
        let mut asker = Asker::new(ask);
        let folder = TempDir::new().unwrap();
        let hang = folder.path().join("hang");
        mknodat(CWD, &hang, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        ask_all(&mut asker, &[&hang, Path::new("/"), Path::new("/tmp")], 1).await;
        let gate = fs::OpenOptions::new().write(true).open(&hang).unwrap();
        let answers = &mut asker.hanging[0].worker.answers;
        assert!(matches!(answers.recv().await, Some(Ok(_))));
        assert!(
            answers.recv().await.is_none(),
            "others have been asked in its stead"
        );
        drop(gate);
    }

    #[tokio::test]
    async fn no_more_threads_than_may_hang() {
        let mut asker = Asker::new(ask);
        asker.hanging = (0..HANGING_MAX)
            .map(|number| Hanging {
                point: PathBuf::from(format!("/{number}")),
                since: Moment::ZERO,
                worker: Worker::start(ask).unwrap(),
            })
            .collect();
        let answers = ask_all(&mut asker, &[Path::new("/")], 1).await;
        assert!(matches!(answers[..], [Answer::NotAsked]));
    }

    #[tokio::test]
    async fn the_kernels_errors_come_back() {
        let mut asker = Asker::default();
        let answers = ask_all(&mut asker, &[Path::new("/no/such/place")], 1).await;
        let [Answer::Given(Err(error))] = &answers[..] else {
            panic!("there is no such place");
        };
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
