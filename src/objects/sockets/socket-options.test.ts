import { afterEach, expect, it } from "vitest";
import { RepriseError } from "../../errors.ts";
import * as so from "../../sys/abi/socket.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { getNumber, getOption, setNumber, socketPair } from "../../sys/socket.ts";
import { runHere } from "../../tracee/local.ts";
import { Program } from "../../tracee/program.ts";
import { openFileOf } from "../files/live-file.fixture.ts";
import { collectOptions, restoreOptions, restoreReuse } from "./socket-options.ts";

const opened: number[] = [];

afterEach(() => {
  for (const fd of opened.splice(0)) trySyscall("close", fd);
});

function socket(family: number = so.AF_UNIX): number {
  const fd = syscall("socket", family, so.SOCK_STREAM | so.SOCK_CLOEXEC, 0);
  opened.push(fd);
  return fd;
}

function collect(fd: number, family: number = so.AF_UNIX): ReturnType<typeof collectOptions> {
  return collectOptions(openFileOf(process.pid, fd), fd, { family });
}

it("sets every option again that was set", () => {
  const from = socket();
  const set = (name: number, value: number): void =>
    setNumber(from, { level: so.SOL_SOCKET, name, value });
  set(so.SO_SNDBUF, 50_000);
  set(so.SO_RCVBUFFORCE, 70_000);
  set(so.SO_BUF_LOCK, 1);
  set(so.SO_PRIORITY, 5);
  set(so.SO_RCVLOWAT, 17);
  set(so.SO_MARK, 0x8000_0001 | 0);
  set(so.SO_REUSEADDR, 1);
  for (const name of [so.SO_PASSCRED, so.SO_BROADCAST, so.SO_OOBINLINE, so.SO_KEEPALIVE])
    set(name, 1);
  const linger = Buffer.from([1, 0, 0, 0, 44, 1, 0, 0]);
  syscall("setsockopt", from, so.SOL_SOCKET, so.SO_LINGER, linger, 8);
  const timeout = Buffer.alloc(16);
  timeout.writeBigUInt64LE(3n, 0);
  timeout.writeBigUInt64LE(500_000n, 8);
  syscall("setsockopt", from, so.SOL_SOCKET, so.SO_RCVTIMEO, timeout, 16);

  const opts = collect(from);
  expect(opts).toMatchObject({
    so_sndbuf: 100_000,
    so_rcvbuf: 140_000,
    so_buf_lock: 1,
    so_mark: 0x8000_0001,
    so_linger: 300,
    so_rcv_tmo_sec: 3n,
    so_rcv_tmo_usec: 500_000n,
    so_passcred: true,
    so_passsec: false,
  });
  const to = socket();
  const program = new Program();
  restoreOptions(program, opts, { fd: to, what: "a socket" });
  restoreReuse(program, opts, { fd: to, what: "a socket" });
  runHere(program);
  expect(collect(to)).toEqual(opts);
});

it("leaves the buffers of an untouched socket unlocked", () => {
  const opts = collect(socket());
  const to = socket();
  const program = new Program();
  restoreOptions(program, opts, { fd: to, what: "a socket" });
  runHere(program);
  expect(getNumber(to, so.SOL_SOCKET, so.SO_BUF_LOCK)).toBe(0);
  expect(collect(to)).toEqual(opts);
});

it("saves the device that a socket is bound to", () => {
  const from = socket(so.AF_INET);
  syscall("setsockopt", from, so.SOL_SOCKET, so.SO_BINDTODEVICE, Buffer.from("lo\0"), 3);
  const opts = collect(from, so.AF_INET);
  expect(opts.so_bound_dev).toBe("lo");
  expect(opts.so_passcred).toBeUndefined();
  const to = socket(so.AF_INET);
  const program = new Program();
  restoreOptions(program, opts, { fd: to, what: "a socket" });
  runHere(program);
  const device = getOption(to, { level: so.SOL_SOCKET, name: so.SO_BINDTODEVICE, size: 16 });
  expect(device.toString()).toBe("lo\0");
});

it("saves a classic filter, an instruction a word", () => {
  const [from, other] = socketPair(so.AF_UNIX, so.SOCK_DGRAM);
  opened.push(from, other);
  // ld [0]; jeq #7 skip 1 else 0; ret 0; ret -1
  const code = Buffer.from(
    "20000000000000001500010007000000060000000000000006000000ffffffff",
    "hex",
  );
  const program = new Program();
  const opts = {
    ...collect(from),
    so_filter: [0x0020_0000_0000_0000n, 0x0015_0100_0000_0007n, 0x0006_0000_0000_0000n].concat(
      0x0006_0000_ffff_ffffn,
    ),
  };
  restoreOptions(program, opts, { fd: from, what: "a socket" });
  runHere(program);
  const length = Buffer.from([4, 0, 0, 0]);
  const found = Buffer.alloc(code.length);
  syscall("getsockopt", from, so.SOL_SOCKET, so.SO_GET_FILTER, found, length);
  expect(found.toString("hex")).toBe(code.toString("hex"));
  expect(collect(from)).toEqual(opts);
});

it("names the call and the socket when an option cannot be set", () => {
  const program = new Program();
  restoreOptions(program, collect(socket()), { fd: 999, what: "unix socket 5" });
  const failure = (): unknown => runHere(program);
  expect(failure).toThrow(RepriseError);
  expect(failure).toThrow(/set SO_SNDBUF of unix socket 5: setsockopt/);
});
