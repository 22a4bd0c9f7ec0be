//! The network a container has, and the ports it publishes.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::time::Duration;

use kiai_tests::kiai::busybox;
use kiai_tests::kiai::debian;
use kiai_tests::scenario;

#[test]
fn none_means_none() {
    scenario(|kiai| {
        let words = ["run", "--rm", "--network", "none", &busybox(), "ls", "/sys/class/net"];
        assert_eq!(kiai.ok(&words), "lo");
        let words = ["run", "--rm", "--network", "none", "-p", "80:80", &busybox(), "true"];
        kiai.call(&words).refused(&["network"]);
    });
}

#[test]
fn the_default_network_reaches_the_host_by_its_gateway() {
    scenario(|kiai| {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut request = [0; 5];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(b"pong\n").unwrap();
            request
        });
        let script = format!(
            "gateway=$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'); \
             echo ping | nc $gateway {port}; grep -c nameserver /etc/resolv.conf; grep $(hostname) /etc/hosts"
        );
        let output = kiai.ok(&["run", "--rm", &busybox(), "sh", "-c", &script]);
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[0], "pong", "{output}");
        assert_ne!(lines[1], "0", "{output}");
        assert!(lines.len() > 2, "its own name is in its hosts file: {output}");
        assert_eq!(&server.join().unwrap(), b"ping\n");
    });
}

#[test]
fn a_redis_server_answers_through_a_published_port() {
    scenario(|kiai| {
        let words = ["run", "-d", "--name", "redis", "-p", "16379:6379", &debian()];
        let server = ["redis-server", "--protected-mode", "no", "--save", "", "--bind", "0.0.0.0"];
        kiai.ok(&[&words[..], &server].concat());
        kiai.start(&["logs", "-f", "redis"]).until("Ready to accept connections");

        let mut client = TcpStream::connect("127.0.0.1:16379").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let value = "v".repeat(200_000);
        let mut ask = |command: &str, expected: &str| {
            client.write_all(command.as_bytes()).unwrap();
            let mut answer = vec![0; expected.len()];
            client.read_exact(&mut answer).unwrap();
            assert!(
                answer == expected.as_bytes(),
                "{:?}",
                String::from_utf8_lossy(&answer[..40.min(answer.len())])
            );
        };
        ask("PING\r\n", "+PONG\r\n");
        let set = format!("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n${}\r\n{value}\r\n", value.len());
        ask(&set, "+OK\r\n");
        ask("GET key\r\n", &format!("${}\r\n{value}\r\n", value.len()));

        let taken = kiai.call(&["run", "-d", "--name", "second", "-p", "16379:6379", &busybox(), "true"]);
        taken.refused(&["16379"]);
        kiai.ok(&["rm", "-f", "redis"]);
        assert!(TcpStream::connect("127.0.0.1:16379").is_err(), "the port is free again");
    });
}
