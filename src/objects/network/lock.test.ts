// The lock from outside: who can reach whom over the loopback device of a namespace of the test's own.

import { spawnSync } from "node:child_process";
import { openSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { IPPROTO_TCP } from "../../sys/abi/inet.ts";
import * as so from "../../sys/abi/socket.ts";
import { EAGAIN, EINTR } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { setNumber } from "../../sys/socket.ts";
import { readSockaddr, sockaddr, type SocketAddress } from "../sockets/inet-address.ts";
import { LOCK_MARK, NetworkLock, type LockedConnection } from "./lock.ts";
import { NetNamespace } from "./net-namespace.fixture.ts";

const LOOPBACK: Readonly<Record<number, Uint8Array>> = {
  [so.AF_INET]: Buffer.from([127, 0, 0, 1]),
  [so.AF_INET6]: Buffer.from([...Array(15).fill(0), 1]),
};

/** A listener and connections to it, in one namespace. */
class Server implements Disposable {
  readonly #fds: number[] = [];
  readonly #listener: number;

  constructor(family: number) {
    this.#listener = this.#socket(family, 0);
    const any = sockaddr({ family, port: 0, bytes: LOOPBACK[family] as Uint8Array, scope: 0 });
    syscall("bind", this.#listener, any, any.length);
    syscall("listen", this.#listener, 8);
  }

  /** A connection: both ends, and what the lock must know of it. */
  connect(mark = 0): { client: number; server: number; connection: LockedConnection } {
    const client = this.#socket(nameOf(this.#listener).family, mark);
    const address = sockaddr(nameOf(this.#listener));
    syscall("connect", client, address, address.length);
    const server = syscall("accept4", this.#listener, 0, 0, so.SOCK_CLOEXEC | so.SOCK_NONBLOCK);
    this.#fds.push(server);
    return { client, server, connection: { local: nameOf(server), remote: nameOf(client) } };
  }

  /** Whether a new connection can be made within a moment. */
  canConnect(mark = 0): boolean {
    const client = this.#socket(nameOf(this.#listener).family, mark);
    const flags = so.SOCK_NONBLOCK;
    const address = sockaddr(nameOf(this.#listener));
    syscall("fcntl", client, F_SETFL, flags);
    trySyscall("connect", client, address, address.length);
    return isReady(client, POLLOUT);
  }

  #socket(family: number, mark: number): number {
    const fd = syscall("socket", family, so.SOCK_STREAM | so.SOCK_CLOEXEC, IPPROTO_TCP);
    this.#fds.push(fd);
    if (mark !== 0) setNumber(fd, { level: so.SOL_SOCKET, name: so.SO_MARK, value: mark });
    return fd;
  }

  [Symbol.dispose](): void {
    for (const fd of this.#fds) trySyscall("close", fd);
  }
}

const F_SETFL = 4;
const POLLIN = 1;
const POLLOUT = 4;

function nameOf(fd: number): SocketAddress {
  const buffer = Buffer.alloc(28);
  const length = Buffer.from([28, 0, 0, 0]);
  syscall("getsockname", fd, buffer, length);
  return readSockaddr(buffer) as SocketAddress;
}

function isReady(fd: number, events: number): boolean {
  const poll = Buffer.alloc(8);
  poll.writeInt32LE(fd, 0);
  poll.writeInt16LE(events, 4);
  const timeout = Buffer.alloc(16);
  timeout.writeUInt32LE(150_000_000, 8);
  // The kernel counts the rest of the time down when a child of ours ends meanwhile.
  for (;;) {
    const ready = trySyscall("ppoll", poll, 1, timeout, 0, 8);
    if (ready !== -EINTR) return ready === 1;
  }
}

/** Whether what one end sends comes in at the other. */
function talks(from: number, to: number): boolean {
  syscall("sendto", from, Buffer.from("x"), 1, 0, 0, 0);
  if (!isReady(to, POLLIN)) return false;
  const got = trySyscall("recvfrom", to, Buffer.alloc(16), 16, so.MSG_DONTWAIT, 0, 0);
  return got > 0 || got === -EAGAIN;
}

function rulesIn(net: NetNamespace): string {
  return net.run("nft list ruleset; iptables-legacy-save 2>/dev/null | grep CRIU || true");
}

describe.each(["nftables", "iptables"] as const)("NetworkLock by %s", (method) => {
  it("locks a namespace for all but marked packets, and unlocks it", () => {
    using net = new NetNamespace();
    using server = net.inside(() => new Server(so.AF_INET));
    const inside = net.inside(() => server.connect());
    const lock = NetworkLock.forDump({ method, namespaces: [reopen(net)] });
    lock.lockNamespaces();
    expect(net.inside(() => server.canConnect())).toBe(false);
    expect(talks(inside.client, inside.server)).toBe(false);
    lock.unlock();
    expect(net.inside(() => server.canConnect())).toBe(true);
    expect(rulesIn(net)).not.toMatch(/CRIU|reprise/);
  });

  it("leaves the lock of a namespace to a restore, which ends it", () => {
    using net = new NetNamespace();
    using server = net.inside(() => new Server(so.AF_INET));
    const dump = NetworkLock.forDump({ method, namespaces: [reopen(net)] });
    dump.lockNamespaces();
    dump.leave();
    expect(net.inside(() => server.canConnect())).toBe(false);
    const inventory = { img_version: 2, ...dump.inventory };
    const failed = NetworkLock.forRestore(inventory, { namespaces: [reopen(net)], rootPid: 1 });
    failed.takeOver([]);
    failed.giveUp();
    expect(net.inside(() => server.canConnect())).toBe(false);
    const restore = NetworkLock.forRestore(inventory, { namespaces: [reopen(net)], rootPid: 1 });
    restore.takeOver([]);
    restore.unlock();
    expect(net.inside(() => server.canConnect())).toBe(true);
    expect(rulesIn(net)).not.toMatch(/CRIU|reprise/);
  });

  it("dies with the engine", async () => {
    using net = new NetNamespace();
    using server = net.inside(() => new Server(so.AF_INET));
    const script = `
      import { NetworkLock } from ${JSON.stringify(join(import.meta.dirname, "lock.ts"))};
      NetworkLock.forDump({ method: "${method}", namespaces: [3] }).lockNamespaces();
      process.stdout.write("locked", () => process.kill(process.pid, "SIGKILL"));
    `;
    const run = spawnSync(
      process.execPath,
      ["--import", "tsx", "--input-type=module", "-e", script],
      { stdio: ["ignore", "pipe", "inherit", net.fd], encoding: "utf8", timeout: 20_000 },
    );
    expect(run.stdout).toBe("locked");
    await expect.poll(() => net.inside(() => server.canConnect()), { timeout: 5_000 }).toBe(true);
    expect(rulesIn(net)).not.toMatch(/CRIU|reprise/);
  });
});

// The connections are in the engine's namespace here: only they are locked.
describe.each([
  ["nftables", so.AF_INET],
  ["nftables", so.AF_INET6],
  ["iptables", so.AF_INET],
  ["iptables", so.AF_INET6],
] as const)("NetworkLock by %s of connections, family %i", (method, family) => {
  it("keeps packets from them, and from no others", () => {
    using net = new NetNamespace();
    net.inside(() => {
      using server = new Server(family);
      const locked = server.connect();
      const more = server.connect();
      const other = server.connect();
      const marked = server.connect(LOCK_MARK);
      const lock = NetworkLock.forDump({ method, namespaces: [] });
      lock.lockConnections([locked.connection, marked.connection]);
      lock.lockConnections([more.connection]);
      lock.leave();
      expect(talks(locked.client, locked.server)).toBe(false);
      expect(talks(locked.server, locked.client)).toBe(false);
      expect(talks(more.client, more.server)).toBe(false);
      expect(talks(other.client, other.server)).toBe(true);
      expect(server.canConnect()).toBe(true);
      const inventory = { img_version: 2, ...lock.inventory };
      const restore = NetworkLock.forRestore(inventory, { namespaces: [], rootPid: 1 });
      restore.takeOver([locked.connection, marked.connection, more.connection]);
      restore.unlock();
      expect(rulesIn(net)).not.toMatch(/CRIU-|reprise|DROP|drop/);
    });
  });
});

it.each(["nftables", "iptables"] as const)(
  "NetworkLock by %s locks connections alone in a namespace that is shared, and takes over a lock of all of it",
  (method) => {
    using net = new NetNamespace();
    using server = net.inside(() => new Server(so.AF_INET));
    const [mine, other] = net.inside(() => [server.connect(), server.connect()] as const);
    const dump = NetworkLock.forDump({ method, namespaces: [], shared: reopen(net) });
    dump.lockNamespaces();
    dump.lockConnections([mine.connection]);
    dump.leave();
    expect(talks(mine.client, mine.server)).toBe(false);
    expect(talks(other.client, other.server)).toBe(true);
    const inventory = { img_version: 2, ...dump.inventory };
    const restore = NetworkLock.forRestore(inventory, {
      namespaces: [],
      shared: reopen(net),
      rootPid: 1,
    });
    restore.takeOver([mine.connection]);
    restore.unlock();
    expect(rulesIn(net)).not.toMatch(/CRIU-|reprise|DROP|drop/);

    const whole = NetworkLock.forDump({ method, namespaces: [reopen(net)] });
    whole.lockNamespaces();
    whole.leave();
    expect(talks(other.client, other.server)).toBe(false);
    const again = { img_version: 2, ...whole.inventory };
    const joined = NetworkLock.forRestore(again, {
      namespaces: [],
      shared: reopen(net),
      rootPid: 1,
    });
    joined.takeOver([]);
    joined.unlock();
    expect(net.inside(() => server.canConnect())).toBe(true);
    expect(rulesIn(net)).not.toMatch(/CRIU-|reprise|DROP|drop/);
  },
);

/** The lock closes the descriptors that it is given. */
function reopen(net: NetNamespace): number {
  return openSync(`/proc/self/fd/${net.fd}`, "r");
}
