//! The eBPF programs of nodemesh. Look-ups only: every rule is decided in user space.
//!
//! One connection meets them in this order: [`connect`] (the client's `connect()`), [`sockops`] (its SYN;
//! later the handshake on the server's side), [`deferred_accept`] (a redirected one at the proxy's listener),
//! [`sk_lookup`] (its arrival at a pod), [`getpeername`] (both applications ask who the other is).
#![no_std]
#![no_main]

mod connect;
mod context;
mod deferred_accept;
mod direct;
mod egress;
mod filing;
mod getpeername;
mod getsockname;
mod maps;
mod nobody;
mod probe;
mod report;
mod sk_lookup;
mod sockops;
mod veth;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier rejects programs that could get here, so there is nothing to say and nobody to hear it.
    loop {}
}

/// Some helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
