// What a checkpoint and a restore leave behind: tasks that run, that are stopped, dry runs, and errors after which everything
// is as it was.

import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { RepriseError } from "../../src/errors.ts";
import { readStatIfAlive } from "../../src/proc/stat.ts";
import { readTasks } from "../../src/proc/tasks.ts";
import { again } from "./cycle.ts";
import { attachProgram, type RunningProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, reapOrphansHere, start } from "./suite.ts";

reapOrphansHere();

describe("what becomes of the tasks", () => {
  test.each(["selfcheck", "many_tasks", "threads"])("%s: left running", async (name) => {
    const program = await start(name);
    const before = await lookAtRest(program.pid);
    await checkpoint({ pid: program.pid, imagesDir: imagesDirOf(program), leave: "running" });
    await expectToBecome(program, before);
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });

  test.each(["selfcheck", "many_tasks", "threads"])(
    "%s: left stopped, and goes on at SIGCONT",
    async (name) => {
      const program = await start(name);
      const pids = treeOf(program.pid);
      await checkpoint({ pid: program.pid, imagesDir: imagesDirOf(program), leave: "stopped" });
      for (const pid of pids) expect(await comesInto(pid, "T"), `pid ${pid}`).toBe("T");
      for (const pid of pids) process.kill(pid, "SIGCONT");
      expect(await program.ask()).toBe("ok 1");
      expect(await program.finish()).toBe("pass");
    },
  );

  test.each(["selfcheck", "many_tasks", "threads"])(
    "%s: restored and left stopped, and goes on at SIGCONT",
    async (name) => {
      const program = endWithTest(
        await again(await start(name), { restore: { leaveStopped: true } }),
      );
      const pids = treeOf(program.pid);
      for (const pid of pids) expect(await comesInto(pid, "T"), `pid ${pid}`).toBe("T");
      for (const pid of pids) process.kill(pid, "SIGCONT");
      expect(await program.ask()).toBe("ok 1");
      expect(await program.finish()).toBe("pass");
    },
  );

  test("left stopped and saved again: the second one is stopped when it is restored", async () => {
    const program = await start("counter");
    await checkpoint({ pid: program.pid, imagesDir: imagesDirOf(program), leave: "stopped" });
    const restored = endWithTest(await again(program));
    expect(await comesInto(restored.pid, "T")).toBe("T");
    process.kill(restored.pid, "SIGCONT");
    expect(await restored.ask()).toBe("ok 1");
    expect(await restored.finish()).toBe("pass");
  });
});

describe("dry runs", () => {
  test("of a checkpoint change nothing and write nothing that stays", async () => {
    const program = await start("many_tasks");
    const imagesDir = imagesDirOf(program);
    const before = await lookAtRest(program.pid);
    const { plan } = await checkpoint({ pid: program.pid, imagesDir, dryRun: true });
    await expectToBecome(program, before);
    expect(readdirSync(imagesDir)).toEqual([]);
    for (const pid of treeOf(program.pid)) expect(plan?.join("\n")).toContain(String(pid));
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });

  test("of a restore make no process and leave the images as they are", async () => {
    const program = await start("many_tasks");
    const pids = treeOf(program.pid);
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    const before = filesOf(imagesDir);
    const { pid, plan } = await restore({ imagesDir, dryRun: true });
    expect(pid).toBe(0);
    expect(filesOf(imagesDir)).toEqual(before);
    for (const one of pids) {
      expect(plan?.join("\n")).toContain(`task ${one} many_tasks`);
      expect(["Z", undefined]).toContain(readStatIfAlive(one)?.state);
    }
    const made = await restore({ imagesDir });
    const restored = endWithTest(attachProgram(program.name, made.pid, program.dir));
    expect(await restored.ask()).toBe("ok 1");
  });
});

describe("failures leave everything as it was", () => {
  test("a restore while the original runs is refused, and both pid and original stay", async () => {
    const program = await start("counter");
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir, leave: "running" });
    const error = await failureOf(restore({ imagesDir }));
    expect(error).toMatchObject({ code: "PID_TAKEN", pid: program.pid });
    expect(await program.ask()).toBe("ok 1");
  });

  test("a restore that fails at its last hook leaves no process behind", async () => {
    const program = await start("many_tasks");
    const pids = treeOf(program.pid);
    const imagesDir = imagesDirOf(program);
    await checkpoint({ pid: program.pid, imagesDir });
    const script = (action: string): void => {
      if (action === "pre-resume") throw new RepriseError("INTERNAL", "no");
    };
    const error = await failureOf(restore({ imagesDir, hooks: { script } }));
    expect(error.message).toBe("no");
    for (const pid of pids) expect(["Z", undefined]).toContain(readStatIfAlive(pid)?.state);
    const made = await restore({ imagesDir });
    const restored = endWithTest(attachProgram(program.name, made.pid, program.dir));
    expect(await restored.ask()).toBe("ok 1");
    expect(await restored.finish()).toBe("pass");
  });

  test("a dump whose post-dump hook fails lets the tasks go on", async () => {
    const program = await start("many_tasks");
    const before = await lookAtRest(program.pid);
    const script = (action: string): void => {
      if (action === "post-dump") throw new RepriseError("INTERNAL", "no");
    };
    const imagesDir = imagesDirOf(program);
    const dump = checkpoint({ pid: program.pid, imagesDir, hooks: { script } });
    expect((await failureOf(dump)).message).toBe("no");
    await expectToBecome(program, before);
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });

  test("a dump into a directory that cannot be made", async () => {
    const program = await start("counter");
    const dump = checkpoint({ pid: program.pid, imagesDir: `${program.outFile}/images` });
    expect((await failureOf(dump)).message).toContain(`${program.outFile}/images`);
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });
});

describe("what cannot be saved is refused, and the program goes on", () => {
  test.each([
    ["io_uring_busy", /fd 3 .*\[io_uring\].* 1 request is under way/],
    ["io_uring_vector", /fd 3 .*\[io_uring\].* 1 request is under way: a request of kind 1 that/],
    ["io_uring_odd_personality", /fd 3 .*\[io_uring\].* it has registered personalities/],
    ["io_uring_odd_passed", /fd 3 .*\[io_uring\].* is open in pid \d+, too/],
    ["io_uring_odd_closed", /memory \w+-\w+ .* an io_uring ring.*closed/],
    ["io_uring_polled", /fd 3 .*\[io_uring\].* 1 request is under way/],
    ["userfaultfd", /fd 3 .* a userfaultfd/],
    ["perf_event", /fd 3 .* a perf event/],
    ["perf_event_mapped", /memory \w+-\w+ .* a perf event.*fd 3/],
    ["bpf_program", /fd 3 .* a bpf program/],
    ["bpf_queue", /fd 3 .* a bpf map of type 22/],
    ["bpf_map_mapped", /memory \w+-\w+ .* a bpf map.*fd 3/],
    ["seccomp_listener", /fd 3 .* a seccomp listener/],
    ["landlock", /fd 3 .* a Landlock ruleset/],
    ["secret", /fd 3 .* secret memory/],
    ["secret_mapped", /secret memory/],
    ["fscontext", /fd 3 .* a file system that is being set up/],
    ["open_tree", /fd 3 .* its mount in no place/],
    ["fanotify", /fanotify .*permission events/],
    ["dispatch", /Syscall User Dispatch without a selector/],
  ])("%s", async (object, message) => {
    const program = await start("refused", [object]);
    const before = await lookAtRest(program.pid);
    const imagesDir = imagesDirOf(program);
    const error = await failureOf(checkpoint({ pid: program.pid, imagesDir }));
    expect(error).toMatchObject({ code: "UNSUPPORTED", pid: program.pid });
    expect(error.message).toContain(`pid ${program.pid}`);
    expect(error.message).toMatch(message);
    expect(error.hint).toMatch(/\w+/);
    expect(readdirSync(imagesDir)).toEqual([]);
    await expectToBecome(program, before);
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });

  test.each([
    ["bpf_shared", /^cannot dump without a loss: fd 3 of pid \d+ .*: bpf program \d+ uses it, too/],
    ["death", /^cannot dump without a loss: thread \d+ .* signal 10 at its parent's death/],
    [
      "dnotify",
      /^cannot dump without a loss: fd 3 of pid \d+ .*signals at changes in the directory/,
    ],
    ["domain", /^cannot dump without a loss: thread \d+ \(refused\) is in a Landlock domain/],
    ["domain_of_thread", /^cannot dump without a loss: thread \d+ .* is in a Landlock domain/],
    ["domain_of_user", /^cannot dump without a loss: thread \d+ .* is in a Landlock domain/],
    ["keyring", /^cannot dump without a loss: pid \d+: the keys in its process keyring \(\d+\)/],
    ["packets", /^cannot dump without a loss: fd 3 of pid \d+ .* packets that it has not read/],
    [
      "socket_error",
      /^cannot dump without a loss: fd 3 of pid \d+ .* an error that it has not read/,
    ],
    ["common_undo", /^cannot dump without a loss: pid \d+ .* would undo of .* is common with pid/],
    ["supervisor", /^cannot dump without a loss: pid \d+ .* seccomp filter .* supervisor/],
  ])("with strict, what would only be lost is refused, too: %s", async (object, message) => {
    const program = await start("refused", [object]);
    const before = await lookAtRest(program.pid);
    const imagesDir = imagesDirOf(program);
    const error = await failureOf(checkpoint({ pid: program.pid, imagesDir, strict: true }));
    expect(error).toMatchObject({ code: "UNSUPPORTED" });
    expect(error.message).toMatch(message);
    await expectToBecome(program, before);
    expect(await program.ask()).toBe("ok 1");
    await checkpoint({ pid: program.pid, imagesDir, leave: "running" });
    expect(await program.finish()).toBe("pass");
  });

  test("with strict, a user's process in no domain is saved", async () => {
    const program = await start("refused", ["user"]);
    await checkpoint({ pid: program.pid, imagesDir: imagesDirOf(program), strict: true });
  });

  test.each([
    {
      what: "a deleted file with another name, without linkRemap",
      name: "hardlink_only",
      args: [],
      message: /^cannot dump fd (\d+) \(.*first \(deleted\)\) of pid (\d+): .* has another name/,
    },
  ])("$what", async ({ name, args, message }) => {
    const program = await start(name, args);
    const before = await lookAtRest(program.pid);
    const imagesDir = imagesDirOf(program);
    const error = await failureOf(checkpoint({ pid: program.pid, imagesDir }));
    const [, fd, pid] = message.exec(error.message) ?? [];
    expect(error).toMatchObject({ code: "UNSUPPORTED", pid: Number(pid), fd: Number(fd) });
    expect(Number(pid)).toBe(program.pid);
    expect(error.hint).toMatch(/\w+/);
    expect(readdirSync(imagesDir)).toEqual([]);
    await expectToBecome(program, before);
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  });
});

/** Waits for the look: a thread that was just let go needs a moment to be back in the system call that it waits in. */
async function expectToBecome(program: RunningProgram, look: unknown): Promise<void> {
  await expect.poll(() => lookAt(program.pid), { timeout: 2000, interval: 5 }).toEqual(look);
}

/** What it is like while it waits: one that checks itself opens files for that. */
async function lookAtRest(root: number): Promise<unknown> {
  const waits = (): string => JSON.stringify(treeOf(root).map((pid) => readTasks(pid).map(waitOf)));
  for (;;) {
    const [before, look, after] = [waits(), lookAt(root), waits()];
    if (before === after && !before.includes("null")) return look;
    await sleep(1);
  }
}

/** How often a thread has gone to sleep, if it sleeps. */
function waitOf(tid: number): string | undefined {
  const status = readFileSync(`/proc/${tid}/status`, "latin1");
  return /^State:\tS[^]*^voluntary_ctxt_switches:\t(\d+)/m.exec(status)?.[1];
}

/** What must not change in a tree that is only looked at: for each process its mappings, descriptors and tracer. */
function lookAt(root: number): unknown[] {
  return treeOf(root).map((pid) => ({
    pid,
    maps: readFileSync(`/proc/${pid}/maps`, "latin1"),
    fds: readdirSync(`/proc/${pid}/fd`).sort(),
    threads: readTasks(pid).map((tid) => lookAtThread(pid, tid)),
  }));
}

function lookAtThread(pid: number, tid: number): unknown {
  const status = readFileSync(`/proc/${pid}/task/${tid}/status`, "latin1");
  const fields = ["TracerPid", "SigBlk", "SigPnd", "ShdPnd", "SigCgt", "Seccomp", "NoNewPrivs"];
  return fields.map((name) => new RegExp(`^${name}:\t.*$`, "m").exec(status)?.[0]);
}

function treeOf(root: number): number[] {
  const pids = [root];
  for (let i = 0; i < pids.length; i++) {
    const pid = pids[i] as number;
    for (const tid of readTasks(pid)) {
      const children = readFileSync(`/proc/${pid}/task/${tid}/children`, "latin1");
      pids.push(...children.split(" ").filter(Boolean).map(Number));
    }
  }
  return pids;
}

/** The state letter of a process, once it is the wanted one or two seconds have passed. */
async function comesInto(pid: number, wanted: string): Promise<string | undefined> {
  for (let attempt = 0; attempt < 200; attempt++) {
    if (readStatIfAlive(pid)?.state === wanted) break;
    await sleep(10);
  }
  return readStatIfAlive(pid)?.state;
}

function filesOf(dir: string): Record<string, string> {
  const names = readdirSync(dir).sort();
  return Object.fromEntries(
    names.map((name) => [name, readFileSync(`${dir}/${name}`).toString("base64")]),
  );
}

async function failureOf(doing: Promise<unknown>): Promise<RepriseError> {
  try {
    await doing;
  } catch (error) {
    if (error instanceof RepriseError) return error;
    throw error;
  }
  throw new Error("it did not fail");
}
