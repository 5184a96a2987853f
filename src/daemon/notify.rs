//! What systemd is told (`sd_notify(3)`); nothing where it does not listen.

use std::time::Duration;

use sd_notify::NotifyState;

/// The daemon works.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The config is being read again; [`ready`] ends it.
pub fn reloading() {
    // systemd 253 wants the time beside it.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(_) => send(&[NotifyState::Reloading]),
    }
}

/// The daemon ends.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// The main loop turns.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often the main loop must turn: a third of what systemd grants, at most once a second.
pub fn turn_every() -> Duration {
    sd_notify::watchdog_enabled().map_or(Duration::from_secs(1), |granted| (granted / 3).min(Duration::from_secs(1)))
}

fn send(states: &[NotifyState<'_>]) {
    // Without systemd there is no socket, and nobody to be told.
    let _ = sd_notify::notify(states);
}
