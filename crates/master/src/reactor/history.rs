//! What readers ask the roll's owner for, because publishing it all the time would cost too much: the
//! newest reports of one slave. An answer is one bounded copy.

use tokio::sync::mpsc;

use super::Reactor;
use crate::view::ReportsAsked;

impl Reactor {
    /// Answers for as long as the daemon lives.
    pub(crate) async fn answer_readers(&self, mut questions: mpsc::Receiver<ReportsAsked>) {
        while let Some(question) = questions.recv().await {
            let reports = self
                .roll()
                .reports(&question.slave, self.durable_group.get());
            // Whoever asked may have gone.
            let _ = question.answer.send(reports.unwrap_or_default());
        }
        // The readers' end is told elsewhere.
        std::future::pending::<()>().await;
    }
}
