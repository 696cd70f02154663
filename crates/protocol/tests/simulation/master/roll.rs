//! What messages mean to the master: whose they are, and whether they are applied.

use std::time::Duration;

use rollcall_protocol::ledger::{Admission, Opening};
use rollcall_protocol::session::Refusal;
use rollcall_protocol::session::master::Step;
use rollcall_protocol::wire::{ErrorCode, Hello, Mark, Pending, Resync, Welcome, to_slave::Kind};

use super::{ANSWERS, BACK_MS, Ending, Holder, Link, Master, Read, Surroundings, goodbye};
use crate::network::ConnId;
use crate::oracle::{Applied, Oracle, What};

impl Master {
    pub(super) fn apply(
        &mut self,
        connection: ConnId,
        link: &mut Link,
        step: Step,
        read: &mut Read,
        world: &mut Surroundings<'_>,
    ) -> Result<(), Refusal> {
        if let Step::Opened(hello) = step {
            return self.open(connection, link, &hello, read, world);
        }
        let slave = link.slave.expect("only an open session speaks");
        let holds = |holder: &&mut Holder| holder.connection == connection;
        let Some(holder) = self.holders.get_mut(&slave).filter(holds) else {
            world.oracle.counts.add("remnants_closed");
            read.end = Some(Ending::Complete);
            return Ok(());
        };
        holder.heard = world.now;
        let (stream, what) = match step {
            Step::Report(report) if report.preview => {
                self.dirty = true;
                return Ok(());
            }
            Step::Report(report) => {
                let number = report.time_ms.unsigned_abs();
                (report.stream, What::Report(report.sequence, number))
            }
            Step::Gap(gap) => (gap.stream, What::Gap(gap.first, gap.last)),
            Step::Goodbye(_) => {
                world.oracle.counts.add("slave_goodbyes");
                let marks = self.ledgers[&slave].marks().to_vec();
                read.answers.push(Kind::Goodbye(goodbye(marks)));
                self.dirty = true;
                return Ok(());
            }
            Step::Opened(_) | Step::Skipped => return Ok(()),
        };
        self.admit(
            Applied {
                slave,
                stream,
                what,
            },
            world.oracle,
        )?;
        let sequence = self.ledgers[&slave].mark(stream).expect("it was admitted");
        match read.marks.iter_mut().find(|mark| mark.stream == stream) {
            Some(mark) => mark.sequence = sequence,
            None => read.marks.push(Mark { stream, sequence }),
        }
        Ok(())
    }

    fn admit(&mut self, applied: Applied, oracle: &mut Oracle) -> Result<(), Refusal> {
        let ledger = self.ledgers.entry(applied.slave).or_default();
        let admission = match applied.what {
            What::Begin(_) => return Ok(()),
            What::Report(sequence, _) => ledger.admit(applied.stream, sequence),
            What::Gap(first, last) => ledger.admit_range(applied.stream, first, last),
        };
        match admission {
            Admission::Apply => {
                self.dirty = true;
                oracle.applied(applied);
                Ok(())
            }
            Admission::Duplicate => {
                oracle.counts.add("duplicates");
                Ok(())
            }
            Admission::Ahead { .. } => {
                oracle.counts.add("holes_refused");
                let code = ErrorCode::Hole;
                Err(Refusal::for_now(code, "a hole", Duration::from_millis(10)))
            }
        }
    }

    fn open(
        &mut self,
        connection: ConnId,
        link: &mut Link,
        hello: &Hello,
        read: &mut Read,
        world: &mut Surroundings<'_>,
    ) -> Result<(), Refusal> {
        let slave = hello.slave_id[0];
        let seen = self.seen.entry(slave).or_default();
        if hello.question != 0 && seen.is_copy(hello.stream, hello.question) {
            world.oracle.counts.add("questions_known");
            link.slave = Some(slave);
            let answer = self.answer_copy(slave, hello);
            read.answers.push(answer);
            read.end = Some(Ending::Complete);
            return Ok(());
        }
        if let Some(holder) = self.holders.get(&slave)
            && holder.stream != hello.stream
            && world.now.saturating_since(holder.heard) < ANSWERS
        {
            world.oracle.counts.add("id_conflicts");
            let code = ErrorCode::IdConflict;
            return Err(Refusal::for_now(
                code,
                "two slaves",
                Duration::from_millis(100),
            ));
        }
        let ledger = self.ledgers.entry(slave).or_default();
        let unknown = |pending: &&Pending| ledger.mark(pending.stream).is_none();
        let unknown: Vec<_> = hello.pending.iter().filter(unknown).copied().collect();
        if let Opening::Backwards { applied } = ledger.open(hello) {
            world.oracle.counts.add("resyncs");
            read.answers.push(Kind::Resync(Resync {
                stream: hello.stream,
                sequence: applied,
            }));
            read.end = Some(Ending::Complete);
            return Ok(());
        }
        let mark = |stream| Mark {
            stream,
            sequence: ledger.mark(stream).expect("it is open"),
        };
        let marks = hello
            .pending
            .iter()
            .map(|pending| mark(pending.stream))
            .collect();
        for pending in unknown {
            world.oracle.applied(Applied {
                slave,
                stream: pending.stream,
                what: What::Begin(pending.first - 1),
            });
        }
        self.dirty = true;
        link.slave = Some(slave);
        if hello.question != 0 {
            let seen = self.seen.entry(slave).or_default();
            seen.note(hello.stream, hello.question);
        }
        let holder = Holder {
            connection,
            stream: hello.stream,
            heard: world.now,
        };
        if self.holders.insert(slave, holder).is_some() {
            world.oracle.counts.add("sessions_taken_over");
        }
        read.answers.push(self.welcome(marks));
        Ok(())
    }

    /// What is answered to a question that was taken in before.
    fn answer_copy(&self, slave: u8, hello: &Hello) -> Kind {
        let ledger = &self.ledgers[&slave];
        let stream = hello.stream;
        if let Some(sequence) = ledger
            .mark(stream)
            .filter(|mark| *mark >= hello.next_sequence)
        {
            return Kind::Resync(Resync { stream, sequence });
        }
        let marks = hello.pending.iter().filter_map(|pending| {
            let stream = pending.stream;
            let sequence = ledger.mark(stream)?;
            Some(Mark { stream, sequence })
        });
        self.welcome(marks.collect())
    }

    fn welcome(&self, marks: Vec<Mark>) -> Kind {
        Kind::Welcome(Welcome {
            version: 1,
            master_id: vec![9; 16],
            master_version: "sim".into(),
            marks,
            max_frame_bytes: 65_532,
            window: self.window,
            back_min_ms: BACK_MS.0,
            back_max_ms: BACK_MS.1,
        })
    }
}
