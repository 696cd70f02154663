//! Reads a master over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use rollcall_protocol::api::{
    EventKind, EventList, EventRow, Readiness, SlaveDetail, SlaveList, SlaveRow,
};
use serde::de::DeserializeOwned;
use ureq::Agent;

const TIMEOUT: Duration = Duration::from_secs(5);
/// The most that the master gives at once.
const EVENTS_MAX: usize = 10_000;

/// A client of one master.
#[derive(Clone, Debug)]
pub struct Api {
    agent: Agent,
    address: SocketAddr,
    base: String,
}

impl Api {
    /// A client of the master whose HTTP side is at `address`.
    pub fn new(address: SocketAddr) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            // A master that was restarted has closed what was kept open.
            .max_idle_connections(0)
            .build();
        Self {
            agent: config.into(),
            address,
            base: format!("http://{address}"),
        }
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// The same as a socket address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The status and body of any path.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let mut response = self.agent.get(format!("{}{path}", self.base)).call()?;
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(u64::MAX)
            .read_to_string()?;
        Ok((status, body))
    }

    /// `GET /v1/slaves`.
    ///
    /// # Errors
    /// If there is no good answer.
    pub fn slaves(&self) -> anyhow::Result<Vec<SlaveRow>> {
        let list: SlaveList = self.json("/v1/slaves")?;
        Ok(list.slaves)
    }

    /// `GET /v1/slaves/{name}`.
    ///
    /// # Errors
    /// If there is no good answer, for example because there is no such slave.
    pub fn slave(&self, name: &str) -> anyhow::Result<SlaveDetail> {
        self.json(&format!("/v1/slaves/{name}"))
    }

    /// All events, oldest first.
    ///
    /// # Errors
    /// If there is no good answer.
    pub fn events(&self) -> anyhow::Result<Vec<EventRow>> {
        let mut events: Vec<EventRow> = Vec::new();
        loop {
            let after = events.last().map_or(0, |event| event.id);
            let path = format!("/v1/events?after={after}&limit={EVENTS_MAX}");
            let page: EventList = self.json(&path)?;
            let is_last = page.events.len() < EVENTS_MAX;
            events.extend(page.events);
            if is_last {
                return Ok(events);
            }
        }
    }

    /// The new states of a slave's presence, oldest first.
    ///
    /// # Errors
    /// If there is no good answer.
    pub fn presences(&self, slave: &str) -> anyhow::Result<Vec<String>> {
        let mut events = self.events()?;
        events.retain(|event| {
            event.kind == EventKind::Presence && event.slave.as_deref() == Some(slave)
        });
        Ok(events.into_iter().filter_map(|event| event.to).collect())
    }

    /// `GET /readyz`: the status and the body.
    ///
    /// # Errors
    /// If there is no good answer.
    pub fn ready(&self) -> anyhow::Result<(u16, Readiness)> {
        let (status, body) = self.get("/readyz")?;
        Ok((status, serde_json::from_str(&body)?))
    }

    /// The status of `GET /healthz`.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn health(&self) -> anyhow::Result<u16> {
        Ok(self.get("/healthz")?.0)
    }

    /// The value of a metric without labels.
    ///
    /// # Errors
    /// If there is no good answer or no such metric.
    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let (_, text) = self.get("/metrics")?;
        let value = text.lines().find_map(|line| {
            let (found, value) = line.split_once(' ')?;
            (found == name).then_some(value)
        });
        let value = value.with_context(|| format!("no metric {name} in:\n{text}"))?;
        Ok(value.parse()?)
    }

    fn json<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let (status, body) = self.get(path)?;
        ensure!(status == 200, "{path}: {status} {body}");
        Ok(serde_json::from_str(&body)?)
    }
}
