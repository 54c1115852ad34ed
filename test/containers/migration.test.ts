// A container moves from one host to another, and a client's TCP connection to it stays up: two hosts with a Podman each, a client
// on a third, all on one bridge; the server's address moves along.

import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { join } from "node:path";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { canHost, hasProgram, startHost, type Host } from "./host.ts";

const VERSION = canHost("v1") ? "v1" : "v2";
const SERVER = "10.77.0.1";
const PORT = "7000";

let hosts: readonly Host[] = [];

beforeAll(async () => {
  hosts = await Promise.all([1, 2, 3].map(() => startHost(VERSION)));
}, 60_000);
afterAll(async () => {
  for (const host of hosts) {
    host.try("podman", "rm", "-fa", "-t", "0");
    await host.stop();
  }
}, 60_000);

test.runIf(hasProgram("podman"))(
  "a connection lives through the move of its server",
  { timeout: 120_000 },
  async () => {
    const [first, second, client] = hosts as readonly [Host, Host, Host];
    wire(first, second, client);
    shareImage(first, second);
    first.run("ip", "addr", "add", `${SERVER}/24`, "dev", "eth0");
    const options = ["--network=host", `--cgroup-parent=/${first.cgroup}`, "--name", "server"];
    const server = ["localhost/busybox:latest", "nc", "-l", "-p", PORT, "-e", "cat"];
    first.run("podman", "run", "-d", ...options, ...server);
    await expect.poll(() => isListening(first)).toBe(true);

    const connection = connect(client);
    onTestFinished(() => void connection.process.kill());
    await connection.echo("before the move");

    const archive = join(first.dir, "server.tar.zst");
    first.run(
      "podman",
      "container",
      "checkpoint",
      "--tcp-established",
      "--export",
      archive,
      "server",
    );
    // The address and the network card's number move, as a virtual address of a cluster does.
    first.run("ip", "link", "set", "eth0", "down");
    second.run("ip", "link", "set", "eth0", "up");
    second.run("ip", "addr", "add", `${SERVER}/24`, "dev", "eth0");
    second.run("podman", "container", "restore", "--tcp-established", "--import", archive);

    await connection.echo("after the move");
    expect(second.run("podman", "inspect", "-f", "{{.State.Status}}", "server")).toBe("running");
    await connection.echo("and once more");
  },
);

/** A bridge on the client's host, with a wire to each of the others; theirs have one card's number. */
function wire(first: Host, second: Host, client: Host): void {
  client.run("ip", "link", "add", "bridge", "type", "bridge");
  client.run("ip", "link", "set", "bridge", "up");
  client.run("ip", "addr", "add", "10.77.0.9/24", "dev", "bridge");
  [first, second].forEach((host, index) => {
    const port = `port${index}`;
    const peer = ["peer", "name", "eth0", "netns", String(host.pid)];
    client.run("ip", "link", "add", port, "type", "veth", ...peer);
    client.run("ip", "link", "set", port, "master", "bridge", "up");
    host.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01");
  });
  first.run("ip", "link", "set", "eth0", "up");
}

/** One image on both: an imported container looks for it by its id. */
function shareImage(first: Host, second: Host): void {
  const rootfs = join(first.dir, "rootfs.tar");
  const image = join(first.dir, "image.tar");
  execFileSync("tar", ["-C", first.rootfs, "-cf", rootfs, "."]);
  first.run("podman", "import", rootfs, "localhost/busybox:latest");
  first.run("podman", "save", "-o", image, "localhost/busybox:latest");
  second.run("podman", "load", "-i", image);
}

function isListening(host: Host): boolean {
  return host.run("ss", "-Hltn", `sport = :${PORT}`) !== "";
}

interface Connection {
  readonly process: ChildProcess;
  /** Sends a line and waits until it comes back. */
  echo(line: string): Promise<void>;
}

function connect(client: Host): Connection {
  const child = spawn("nsenter", [...client.enter, "/bin/busybox", "nc", SERVER, PORT], {
    stdio: ["pipe", "pipe", "inherit"],
    env: client.env,
  });
  let received = "";
  child.stdout.on("data", (data: Buffer) => (received += data.toString()));
  return {
    process: child,
    async echo(line) {
      child.stdin.write(`${line}\n`);
      await expect.poll(() => received, { timeout: 20_000 }).toContain(`${line}\n`);
    },
  };
}
