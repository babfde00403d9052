//! Unix sockets that keep message borders and carry descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    cmsg_space,
    fs::Mode,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType,
    },
};

/// Descriptors that one message can carry at most.
pub const MAX_FDS: usize = 4;

/// Two connected sockets: one read gives one message, as on `/dev/fuse`.
///
/// # Errors
/// What socketpair(2) says.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Listens at a path that does not exist yet; only the owner can connect.
///
/// # Errors
/// What socket(2), bind(2), chmod(2) or listen(2) say.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Before `listen`, so that nobody can connect while the mode is the umask's.
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

/// Connects to a listening socket.
///
/// # Errors
/// `ENOENT` or `ECONNREFUSED` when nobody listens there, and what else connect(2) says.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Takes a connection that waits; also who it is: process id and user id.
///
/// # Errors
/// What accept(2) or getsockopt(2) say.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, i32, u32)> {
    let socket = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
    let peer = rustix::net::sockopt::socket_peercred(&socket)?;
    Ok((socket, peer.pid.as_raw_pid(), peer.uid.as_raw()))
}

/// Sends one message with descriptors. Never raises SIGPIPE.
///
/// # Errors
/// More than [`MAX_FDS`] descriptors, and what sendmsg(2) says.
pub fn send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(message)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message of at most `max` bytes with its descriptors (close-on-exec). An empty message: the other
/// side has gone.
///
/// # Errors
/// The message or its descriptors are more than there is room for, and what recvmsg(2) says.
pub fn receive(socket: impl AsFd, max: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; max];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of more than {max} bytes or {MAX_FDS} descriptors"),
        ));
    }
    buffer.truncate(received.bytes);
    Ok((buffer, fds))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn messages_keep_their_borders_and_carry_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = listen(&path).unwrap();
        let client = connect(&path).unwrap();
        let (server, pid, uid) = accept(&listener).unwrap();
        assert_eq!(
            pid,
            rustix::process::getpid().as_raw_nonzero().get(),
            "the peer is this process"
        );
        assert_eq!(uid, rustix::process::geteuid().as_raw());

        let (mut reader, writer) = io::pipe().unwrap();
        send(&server, b"one", &[writer.as_fd()]).unwrap();
        send(&server, b"two", &[]).unwrap();
        drop(writer);
        let (message, fds) = receive(&client, 100).unwrap();
        assert_eq!((message.as_slice(), fds.len()), (b"one".as_slice(), 1));
        let mut file = std::fs::File::from(fds.into_iter().next().unwrap());
        file.write_all(b"through").unwrap();
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert_eq!(receive(&client, 100).unwrap().0, b"two");
        drop(server);
        assert_eq!(receive(&client, 100).unwrap().0, b"");
    }

    #[test]
    fn a_message_that_is_too_long_is_an_error() {
        let (a, b) = pair().unwrap();
        send(&a, &[7; 101], &[]).unwrap();
        assert_eq!(
            receive(&b, 100).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
