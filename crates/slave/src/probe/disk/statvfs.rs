//! Asking file systems from a thread that may hang in the agent's stead.
//!
//! statvfs(3) on a dead NFS server does not return, and no signal ends it. So a worker thread asks;
//! when it does not come back, it is left to that file system, which is not asked again before the
//! worker is back, and the next file system gets a new worker.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use rollcall_protocol::Moment;
use rustix::fs::{StatVfs, statvfs};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// How long one file system may hold up a report.
const ANSWER_WAIT: Duration = Duration::from_millis(250);
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

/// Asks one file system after the other.
pub(super) struct Asker {
    /// How a file system is asked; the tests ask otherwise.
    ask: fn(&Path) -> io::Result<StatVfs>,
    idle: Option<Worker>,
    hanging: Vec<Hanging>,
}

struct Hanging {
    point: PathBuf,
    since: Moment,
    worker: Worker,
}

struct Worker {
    questions: std_mpsc::Sender<PathBuf>,
    answers: mpsc::UnboundedReceiver<io::Result<StatVfs>>,
}

impl Default for Asker {
    fn default() -> Self {
        Self::new(|point| statvfs(point).map_err(io::Error::from))
    }
}

impl Asker {
    fn new(ask: fn(&Path) -> io::Result<StatVfs>) -> Self {
        Self {
            ask,
            idle: None,
            hanging: Vec::new(),
        }
    }

    /// Asks the file system at `point`, and waits a moment for the answer, but not beyond
    /// `deadline`.
    pub(super) async fn ask(&mut self, point: &Path, now: Moment, deadline: Instant) -> Answer {
        if let Some(position) = self
            .hanging
            .iter()
            .position(|hanging| hanging.point == point)
        {
            return self.ask_hanging(position);
        }
        let deadline = deadline.min(Instant::now() + ANSWER_WAIT);
        if self.hanging.len() >= HANGING_MAX || deadline <= Instant::now() {
            return Answer::NotAsked;
        }
        let mut worker = match self.idle.take().map_or_else(|| Worker::start(self.ask), Ok) {
            Ok(worker) => worker,
            Err(error) => return Answer::Given(Err(error)),
        };
        // A worker that ended gives no answer either, which is seen at once below.
        let _ = worker.questions.send(point.to_owned());
        match timeout_at(deadline, worker.answers.recv()).await {
            Ok(Some(answer)) => {
                self.idle = Some(worker);
                Answer::Given(answer)
            }
            Ok(None) => Answer::Given(Err(io::Error::other("the asking thread ended"))),
            Err(_) => {
                tracing::warn!(
                    event = "disk_hangs",
                    mount = %point.display(),
                    "the file system does not answer statvfs; it is not asked again before it does"
                );
                self.hanging.push(Hanging {
                    point: point.to_owned(),
                    since: now,
                    worker,
                });
                Answer::Hangs(now)
            }
        }
    }

    fn ask_hanging(&mut self, position: usize) -> Answer {
        let hanging = &mut self.hanging[position];
        let answer = match hanging.worker.answers.try_recv() {
            Ok(answer) => answer,
            Err(mpsc::error::TryRecvError::Empty) => return Answer::Hangs(hanging.since),
            Err(mpsc::error::TryRecvError::Disconnected) => {
                Err(io::Error::other("the asking thread ended"))
            }
        };
        let released = self.hanging.swap_remove(position);
        tracing::info!(
            event = "disk_answers",
            mount = %released.point.display(),
            "the file system answers again"
        );
        Answer::Given(answer)
    }

    /// Lets go of workers that came back from file systems which nobody asks for any more.
    pub(super) fn tidy(&mut self) {
        self.hanging
            .retain(|hanging| hanging.worker.answers.is_empty());
    }
}

impl Worker {
    fn start(ask: fn(&Path) -> io::Result<StatVfs>) -> io::Result<Self> {
        let (questions, inbox) = std_mpsc::channel::<PathBuf>();
        let (outbox, answers) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("disk-probe".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // Ends when the asker lets go of it.
                for point in inbox {
                    if outbox.send(ask(&point)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self { questions, answers })
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

    async fn answer(asker: &mut Asker, point: impl AsRef<Path>, now: u64) -> Answer {
        let deadline = Instant::now() + Duration::from_secs(10);
        let now = Moment::new(Duration::from_secs(now));
        asker.ask(point.as_ref(), now, deadline).await
    }

    #[tokio::test]
    async fn one_that_hangs_does_not_hold_up_the_others() {
        let mut asker = Asker::new(ask);
        let folder = TempDir::new().unwrap();
        let hang = folder.path().join("hang");
        mknodat(CWD, &hang, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(matches!(
            answer(&mut asker, &hang, 1).await,
            Answer::Hangs(_)
        ));
        assert!(matches!(
            answer(&mut asker, "/", 2).await,
            Answer::Given(Ok(_))
        ));
        asker.tidy();
        let Answer::Hangs(since) = answer(&mut asker, &hang, 3).await else {
            panic!("it is not asked a second time");
        };
        assert_eq!(since, Moment::new(Duration::from_secs(1)));
        let gate = fs::OpenOptions::new().write(true).open(&hang).unwrap();
        let back = async {
            while !matches!(answer(&mut asker, &hang, 4).await, Answer::Given(Ok(_))) {
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
    async fn no_more_threads_than_may_hang() {
        let mut asker = Asker::new(ask);
        asker.hanging = (0..HANGING_MAX)
            .map(|number| Hanging {
                point: PathBuf::from(format!("/{number}")),
                since: Moment::ZERO,
                worker: Worker::start(ask).unwrap(),
            })
            .collect();
        assert!(matches!(answer(&mut asker, "/", 1).await, Answer::NotAsked));
    }

    #[tokio::test]
    async fn the_kernels_errors_come_back() {
        let mut asker = Asker::default();
        let Answer::Given(Err(error)) = answer(&mut asker, "/no/such/place", 1).await else {
            panic!("there is no such place");
        };
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
