//! Events.
use crate::state::StateStore;
/// One event.
#[derive(Debug, Clone)]
pub struct Event {}
impl Event {
    /// Of a task.
    pub fn of_task(_category: &str, _task: &str, _message: impl Into<String>) -> Self {
        Self {}
    }
    /// With a code.
    pub fn code(self, _code: &str) -> Self {
        self
    }
}
/// Stores it.
pub fn record(_state: &dyn StateStore, _event: Event) {}
