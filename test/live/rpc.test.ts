// The RPC of the criu command as runtimes use it: answers, exit codes, notifications in their order, refusals that are taken
// back, and descriptors that are the client's.

import { spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { CriuReqType as Type, type CriuResp } from "../../src/images/schema/messages.generated.ts";
import { decode, encode } from "../../src/images/codec.ts";
import { F_GETFL, O_CLOEXEC, O_NONBLOCK } from "../../src/sys/abi/fcntl.ts";
import { SIGKILL } from "../../src/sys/abi/signal.ts";
import { syscall } from "../../src/sys/ffi.ts";
import { sendSignal } from "../../src/sys/process.ts";
import { readChildren } from "../../src/proc/children.ts";
import {
  ask,
  askOnce,
  connectSeqpacket,
  CRIU,
  startWorker,
  type Notification,
  type Request,
} from "./rpc-client.ts";
import {
  attachProgram,
  killProgram,
  makeDir,
  removeDir,
  startProgram,
  type RunningProgram,
} from "./programs.ts";

let dir: string;
let images: string;
let imagesFd: number;
beforeEach(() => {
  dir = makeDir("rpc");
  images = join(dir, "images");
  mkdirSync(images);
  imagesFd = openSync(images, "r");
});
afterEach(() => {
  closeSync(imagesFd);
  removeDir(dir);
});

async function quietProgram(): Promise<RunningProgram> {
  const program = await startProgram("heap_brk", [], { dir });
  onTestFinished(() => killProgram(program));
  await program.waitReady();
  return program;
}

const names = (seen: readonly Notification[]): (string | undefined)[] =>
  seen.map(({ script }) => script);

describe("small requests", () => {
  test("VERSION at any descriptor number, several on one connection", async () => {
    const worker = startWorker({ number: 9 });
    const version = { major_number: 4, minor_number: 2 };
    const expected = { type: Type.VERSION, success: true, version };
    expect(ask(worker, { type: Type.VERSION, keep_open: true })).toMatchObject(expected);
    expect(ask(worker, { type: Type.VERSION })).toMatchObject(expected);
    expect(await worker.ended).toBe(0);
    closeSync(worker.socket);
  });

  test("FEATURE_CHECK answers all three, true only for what is asked", async () => {
    const { response, status } = await askOnce({
      type: Type.FEATURE_CHECK,
      features: { pidfd_store: true },
    });
    expect(response).toMatchObject({
      type: Type.FEATURE_CHECK,
      success: true,
      features: { mem_track: false, lazy_pages: false, pidfd_store: true },
    });
    expect(status).toBe(0);
  });

  test("CHECK, an unknown request, and a client that goes without a word", async () => {
    const check = await askOnce({ type: Type.CHECK });
    expect(check.response).toMatchObject({ type: Type.CHECK, success: true });
    expect(check.status).toBe(0);
    const unknown = await askOnce({ type: Type.EMPTY });
    expect(unknown.response).toMatchObject({ type: Type.EMPTY, success: false });
    expect(unknown.status).toBe(255);
    const silent = startWorker();
    closeSync(silent.socket);
    expect(await silent.ended).toBe(255);
  });

  test("a request that cannot keep the connection open gets no answer", async () => {
    const opts = { images_dir_fd: imagesFd };
    const { response, status } = await askOnce({ type: Type.DUMP, keep_open: true, opts });
    expect(response).toBeUndefined();
    expect(status).toBe(255);
  });

  test("the processor fits its own description, and no better one", async () => {
    const opts = { images_dir_fd: imagesFd };
    const request = (type: number): Request => ({ type, opts });
    expect((await askOnce(request(Type.CPUINFO_CHECK))).response).toMatchObject({
      type: Type.CPUINFO_CHECK,
      success: false,
    });
    expect((await askOnce(request(Type.CPUINFO_DUMP))).response?.success).toBe(true);
    expect((await askOnce(request(Type.CPUINFO_CHECK))).response?.success).toBe(true);
    const path = join(images, "cpuinfo.img");
    const head = 12;
    const bytes = readFileSync(path);
    const entry = decode("cpuinfo_entry", bytes.subarray(head));
    const [cpu] = entry.x86_entry;
    const capability = cpu?.capability.map((word, index) =>
      index === 6 ? word | (1 << 16) : word,
    );
    const better = encode("cpuinfo_entry", {
      ...entry,
      x86_entry: [{ ...(cpu as NonNullable<typeof cpu>), capability: capability ?? [] }],
    });
    const length = Buffer.alloc(4);
    length.writeUInt32LE(better.length);
    writeFileSync(path, Buffer.concat([bytes.subarray(0, 8), length, better]));
    // Word 6, bit 16: FMA4, which no processor has any more.
    expect((await askOnce(request(Type.CPUINFO_CHECK))).response).toMatchObject({
      success: false,
      cr_errno: 95,
    });
  });

  test("WAIT_PID of what is no child", async () => {
    const { response } = await askOnce({ type: Type.WAIT_PID, pid: 1 });
    expect(response).toMatchObject({ type: Type.WAIT_PID, success: false, cr_errno: 10 });
  });
});

describe("dump and restore", () => {
  test("a program comes back, and the client hears of every step", async () => {
    const program = await quietProgram();
    const seen: Notification[] = [];
    const answer = (notification: Notification): void => void seen.push(notification);
    const opts = {
      images_dir_fd: imagesFd,
      pid: program.pid,
      log_level: 4,
      log_file: "dump.log",
      notify_scripts: true,
    };
    const dumped = await askOnce({ type: Type.DUMP, opts }, { answer });
    expect(dumped).toMatchObject({ response: { type: Type.DUMP, success: true }, status: 0 });
    expect(dumped.response?.dump?.restored).toBe(false);
    expect(names(seen)).toEqual(["pre-dump", "query-ext-files", "post-dump"]);
    expect(seen.every(({ pid }) => pid === undefined)).toBe(true);
    for (const file of ["dump.log", "stats-dump", "inventory.img"]) {
      expect(existsSync(join(images, file)), file).toBe(true);
    }

    seen.length = 0;
    const restored = await askOnce(
      {
        type: Type.RESTORE,
        opts: { images_dir_fd: imagesFd, log_file: "restore.log", notify_scripts: true },
      },
      { answer },
    );
    expect(restored).toMatchObject({
      response: { type: Type.RESTORE, success: true, restore: { pid: program.pid } },
      status: 0,
    });
    expect(seen.map(({ script, pid }) => [script, pid])).toEqual([
      ["pre-restore", undefined],
      ["post-restore", program.pid],
      ["pre-resume", undefined],
      ["post-resume", undefined],
    ]);
    const again = attachProgram("heap_brk", program.pid, dir);
    expect(await again.finish()).toBe("pass");
  });

  test("a client that refuses: the dump is taken back, the restore leaves nothing", async () => {
    const program = await quietProgram();
    const refuse =
      (step: string) =>
      ({ script }: Notification) => ({ agrees: script !== step });
    const opts = { images_dir_fd: imagesFd, pid: program.pid, notify_scripts: true };
    const refused = await askOnce({ type: Type.DUMP, opts }, { answer: refuse("post-dump") });
    expect(refused).toMatchObject({ response: { type: Type.DUMP, success: false }, status: 1 });
    expect(refused.response?.cr_errmsg).toContain("post-dump");
    expect(refused.response?.cr_errno).toBeGreaterThan(0);
    expect(isRunning(program.pid)).toBe(true);

    expect((await askOnce({ type: Type.DUMP, opts })).response?.success).toBe(true);
    const failed = await askOnce({ type: Type.RESTORE, opts }, { answer: refuse("post-restore") });
    expect(failed).toMatchObject({ response: { type: Type.RESTORE, success: false }, status: 1 });
    expect(isRunning(program.pid)).toBe(false);
    const log = readFileSync(join(images, "criu.log"), "utf8");
    expect(log).toMatch(/Error \([\w/-]+\.ts:\d+\): the RPC client refused post-restore/);
  });

  test("a restored sibling is the client's own child, and the only one", async () => {
    const program = await quietProgram();
    const opts = { images_dir_fd: imagesFd, log_level: 4 };
    const dumped = await askOnce({ type: Type.DUMP, opts: { ...opts, pid: program.pid } });
    expect(dumped.response?.success).toBe(true);
    await until(() => !readChildren(process.pid).includes(program.pid));
    const before = readChildren(process.pid);
    const restored = await askOnce({ type: Type.RESTORE, opts: { ...opts, rst_sibling: true } });
    expect(restored).toMatchObject({
      response: { success: true, restore: { pid: program.pid } },
      status: 0,
    });
    await until(() => !readChildren(process.pid).includes(restored.worker));
    const fresh = readChildren(process.pid).filter((pid) => !before.includes(pid));
    expect(fresh).toEqual([program.pid]);
    expect(await attachProgram("heap_brk", program.pid, dir).finish()).toBe("pass");
  });

  test("a pipe of outside becomes the one that the worker has, whose flags stay", async () => {
    const [first, second] = [makePipe(), makePipe()];
    onTestFinished(() => [first, second].flat().forEach((fd) => closeSync(fd)));
    const program = spawn("sleep", ["1000"], {
      stdio: ["ignore", first[1], "ignore"],
      detached: true,
    });
    const pid = program.pid ?? -1;
    onTestFinished(() => sendSignal(pid, SIGKILL));
    const key = readlinkSync(`/proc/${pid}/fd/1`);
    expect(key).toMatch(/^pipe:/);
    // The loader has libraries open until the program sleeps (clock_nanosleep).
    await until(() => readFileSync(`/proc/${pid}/syscall`, "latin1").startsWith("230 "));
    const before = readdirSync(`/proc/${pid}/fd`);
    const opts = { images_dir_fd: imagesFd };
    expect((await askOnce({ type: Type.DUMP, opts: { ...opts, pid } })).response?.success).toBe(
      true,
    );
    await until(() => !readChildren(process.pid).includes(pid));
    const restored = await askOnce(
      { type: Type.RESTORE, opts: { ...opts, inherit_fd: [{ fd: 1, key }] } },
      { stdio: ["ignore", second[1], "ignore"] },
    );
    expect(restored).toMatchObject({ response: { success: true, restore: { pid } }, status: 0 });
    const own = readlinkSync(`/proc/self/fd/${second[1]}`);
    expect(own).not.toBe(key);
    expect(readlinkSync(`/proc/${pid}/fd/1`)).toBe(own);
    expect(readdirSync(`/proc/${pid}/fd`)).toEqual(before);
    // Shared with whoever else has the pipe: a worker that made it non-blocking would have made it so for all.
    expect(syscall("fcntl", second[1], F_GETFL) & O_NONBLOCK).toBe(0);
  });

  test("what is wrong with a request is told by number", async () => {
    const missing = await askOnce({ type: Type.DUMP, opts: { images_dir_fd: 999, pid: 1 } });
    expect(missing.response).toMatchObject({ type: Type.DUMP, success: false, cr_errno: 56 });
    const folder = { images_dir_fd: imagesFd, log_file: "a/b" };
    const subdir = await askOnce({ type: Type.RESTORE, opts: folder });
    expect(subdir.response).toMatchObject({ type: Type.RESTORE, success: false, cr_errno: 56 });
    const gone = await askOnce({
      type: Type.DUMP,
      opts: { images_dir_fd: imagesFd, pid: 4194303 },
    });
    expect(gone.response).toMatchObject({ type: Type.DUMP, success: false, cr_errno: 3 });
  });

  test("the client's configuration file wins over its request", async () => {
    const program = await quietProgram();
    const config = join(dir, "runc.conf");
    const marks = join(dir, "marks");
    const script = join(dir, "mark");
    writeFileSync(script, `#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION >>${marks}\n`, { mode: 0o755 });
    const lines = ["log-file other.log # a comment", "verbosity 4", `action-script "${script}"`];
    writeFileSync(config, `${lines.join("\n")}\n`);
    const opts = {
      images_dir_fd: imagesFd,
      pid: program.pid,
      log_file: "dump.log",
      config_file: config,
      leave_running: true,
    };
    expect((await askOnce({ type: Type.DUMP, opts })).response?.success).toBe(true);
    expect(readFileSync(join(images, "other.log"), "utf8")).toContain("Dumping finished");
    expect(existsSync(join(images, "dump.log"))).toBe(false);
    expect(readFileSync(marks, "utf8").split("\n")).toEqual(["pre-dump", "post-dump", ""]);
    expect(isRunning(program.pid)).toBe(true);
  });

  test("pre-dumps and the dump on one connection", async () => {
    const program = await quietProgram();
    const worker = startWorker();
    const first = join(dir, "first");
    mkdirSync(first);
    const firstFd = openSync(first, "r");
    const base = { pid: program.pid, track_mem: true, notify_scripts: true };
    const unexpected = (): never => {
      throw new Error("a notification in a pre-dump");
    };
    const pre = { type: Type.PRE_DUMP, opts: { ...base, images_dir_fd: firstFd } };
    expect(ask(worker, pre, unexpected)).toMatchObject({ type: Type.PRE_DUMP, success: true });
    const last = { ...base, images_dir_fd: imagesFd, parent_img: "../first" };
    expect(ask(worker, { type: Type.DUMP, opts: last })).toMatchObject({
      type: Type.DUMP,
      success: true,
    });
    expect(await worker.ended).toBe(0);
    closeSync(worker.socket);
    closeSync(firstFd);
    expect(existsSync(join(images, "parent"))).toBe(true);
    const opts = { images_dir_fd: imagesFd };
    expect((await askOnce({ type: Type.RESTORE, opts })).response?.success).toBe(true);
    expect(await attachProgram("heap_brk", program.pid, dir).finish()).toBe("pass");
  });
});

describe("criu service", () => {
  test("a worker for every connection; what needs the client's own worker is refused", async () => {
    const program = await quietProgram();
    const service = spawn(CRIU, ["service", "-W", dir, "--address", "s", "--pidfile", "pid"], {
      stdio: "ignore",
      env: { PATH: process.env["PATH"] },
    });
    onTestFinished(() => void service.kill("SIGKILL"));
    await until(() => existsSync(join(dir, "pid")));
    expect(readFileSync(join(dir, "pid"), "utf8").trim()).toBe(String(service.pid));
    const call = (request: Request): CriuResp | undefined => {
      const socket = connectSeqpacket(join(dir, "s"));
      try {
        return ask({ socket }, request);
      } finally {
        closeSync(socket);
      }
    };
    expect(call({ type: Type.VERSION })).toMatchObject({ success: true });
    const opts = { images_dir_fd: imagesFd };
    expect(call({ type: Type.RESTORE, opts: { ...opts, rst_sibling: true } })).toMatchObject({
      success: false,
      cr_errno: 56,
    });
    expect(call({ type: Type.DUMP, opts: { ...opts, pid: program.pid } })).toMatchObject({
      success: true,
    });
    await until(() => !readChildren(process.pid).includes(program.pid));
    expect(call({ type: Type.RESTORE, opts })).toMatchObject({
      success: true,
      restore: { pid: program.pid },
    });
    expect(await attachProgram("heap_brk", program.pid, dir).finish()).toBe("pass");
  });
});

describe("page server", () => {
  test("a child of the worker takes the pages, and its end is told", async () => {
    const program = await quietProgram();
    const server = startWorker();
    const started = ask(server, {
      type: Type.PAGE_SERVER_CHLD,
      keep_open: true,
      opts: { images_dir_fd: imagesFd, log_file: "page-server.log", ps: { address: "127.0.0.1" } },
    });
    expect(started).toMatchObject({ type: Type.PAGE_SERVER, success: true });
    const { pid, port } = started?.ps ?? {};
    const ps = { address: "127.0.0.1", port };
    const dumped = await askOnce({
      type: Type.DUMP,
      opts: { images_dir_fd: imagesFd, pid: program.pid, ps },
    });
    expect(dumped.response).toMatchObject({ success: true });
    expect(ask(server, { type: Type.WAIT_PID, pid })).toMatchObject({
      type: Type.WAIT_PID,
      success: true,
      status: 0,
    });
    expect(await server.ended).toBe(0);
    closeSync(server.socket);
    const restored = await askOnce({ type: Type.RESTORE, opts: { images_dir_fd: imagesFd } });
    expect(restored.response?.success).toBe(true);
    expect(await attachProgram("heap_brk", program.pid, dir).finish()).toBe("pass");
  });
});

/** Both ends of a new pipe. */
function makePipe(): [number, number] {
  const ends = Buffer.alloc(8);
  syscall("pipe2", ends, O_CLOEXEC);
  return [ends.readInt32LE(0), ends.readInt32LE(4)];
}

async function until(isTrue: () => boolean): Promise<void> {
  for (const end = Date.now() + 5_000; !isTrue();) {
    if (Date.now() > end) throw new Error("waited in vain");
    await sleep(5);
  }
}

function isRunning(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
