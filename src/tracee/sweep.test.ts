import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { getPriority, tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { PRIO_PROCESS } from "../sys/abi/sched.ts";
import { EBADF, ESRCH } from "../sys/errno.ts";
import type { Pointer, Ref } from "./program.ts";
import { Sweep, type Field } from "./sweep.ts";
import { ThreadFiles } from "./thread-files.ts";

function files(texts: readonly string[]): number[] {
  const dir = mkdtempSync(join(tmpdir(), "reprise-sweep-"));
  const fds = texts.map((text, index) => {
    writeFileSync(join(dir, `${index}`), text);
    return openSync(join(dir, `${index}`), "r");
  });
  onTestFinished(() => {
    fds.forEach((fd) => closeSync(fd));
    rmSync(dir, { recursive: true });
  });
  return fds;
}

/** Reads eight bytes of each. */
function reader(count: number): { sweep: Sweep; fd: Field; into: Pointer; read: Ref } {
  let parts: { fd: Field; into: Pointer; read: Ref } | undefined;
  const sweep = new Sweep(count, (program) => {
    const fd = program.field(4);
    const into = program.output(8);
    const args = [program.contentOf(fd), into, 8, 0];
    parts = { fd, into, read: program.call("pread64", args, { mayFail: true }) };
  });
  return { sweep, ...(parts as unknown as NonNullable<typeof parts>) };
}

test("each record has its own arguments, results and output", () => {
  const { sweep, fd, into, read } = reader(3);
  const fds = [...files(["first", "seconds!"]), 1_000_000];
  fds.forEach((one, index) => sweep.memory.writeInt32LE(one, sweep.place(index, fd)));
  sweep.run();
  const told = fds.map((_, index) => sweep.select(index).value(read));
  expect(told).toEqual([5, 8, -EBADF]);
  expect(sweep.select(0).bytes(into, 5).toString()).toBe("first");
  expect(sweep.select(1).bytes(into, 8).toString()).toBe("seconds!");
  expect(sweep.word(into)).toBe(Buffer.from("seconds!").readBigUInt64LE());
  expect(sweep.address(1, fd) - sweep.address(0, fd)).toBe(sweep.size);
});

test("it runs again, for as many as are wanted, and on another thread", () => {
  const { sweep, fd, into, read } = reader(2);
  const [one = -1, two = -1] = files(["one", "two"]);
  sweep.memory.writeInt32LE(one, sweep.place(0, fd));
  sweep.memory.writeInt32LE(two, sweep.place(1, fd));
  sweep.run(1);
  expect([0, 1].map((index) => sweep.select(index).value(read))).toEqual([3, 0]);
  sweep.memory.writeInt32LE(two, sweep.place(0, fd));
  sweep.runElsewhere();
  sweep.awaitEnd();
  expect([0, 1].map((index) => sweep.select(index).bytes(into, 3).toString())).toEqual([
    "two",
    "two",
  ]);
});

test("threads are asked by their numbers and for their files, in more than one go", () => {
  const { pid } = process;
  const others = readdirSync("/proc/self/task").map(Number);
  const real = [pid, others.find((tid) => tid !== pid) ?? pid];
  // Numbers that nobody has are those of threads that are gone.
  const gone = Array.from({ length: 40 }, (_, index) => 1_000_000_000 + index);
  const tids = [pid, ...gone, real[1] ?? pid];
  using asked = new ThreadFiles(pid, tids, (program, { directory, path, tid }) => {
    const into = program.output(64);
    const mayFail = { mayFail: true };
    const link = program.call("readlinkat", [directory, path("ns/net"), into, 64], mayFail);
    const priority = program.call("getpriority", [PRIO_PROCESS, tid], mayFail);
    return (answers) => ({
      link: answers.bytes(into, Math.max(0, answers.value(link))).toString(),
      priority: answers.value(priority),
    });
  });
  const told = tids.map((tid) => asked.of(tid));
  const own = { link: readlinkSync("/proc/self/ns/net"), priority: 20 - getPriority() };
  expect(told.slice(1, -1)).toEqual(gone.map(() => ({ link: "", priority: -ESRCH })));
  expect([told[0], told.at(-1)]).toEqual([own, own]);
});
