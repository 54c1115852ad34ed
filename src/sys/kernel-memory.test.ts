// Reading the kernel's memory: what it says of this process is what /proc says.
import { closeSync, openSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { KernelMemory } from "./kernel-memory.ts";
import { KernelObjects } from "./kernel-objects.ts";
import { KernelTypes } from "./kernel-types.ts";

test("the current task is this one", () => {
  using memory = new KernelMemory();
  const types = KernelTypes.ofKernel();
  const task = memory.read(0n, types.size("task_struct"));
  const { offset } = types.field("task_struct.comm");
  const comm = task.toString("latin1", offset, offset + 16).replace(/\0.*$/s, "");
  expect(task.readInt32LE(types.field("task_struct.tgid").offset)).toBe(process.pid);
  const tid = task.readInt32LE(types.field("task_struct.pid").offset);
  expect(readFileSync(`/proc/self/task/${tid}/comm`, "latin1").trim()).toBe(comm);
});

test("a file has the position that was read to", () => {
  const fd = openSync("/proc/self/maps", "r");
  try {
    using memory = new KernelMemory();
    const objects = new KernelObjects(memory);
    const file = memory.file(fd, objects.types);
    expect(objects.word(file, "file.f_pos")).toBe(0n);
    readFileSync(fd);
    expect(objects.word(file, "file.f_pos")).toBeGreaterThan(1000n);
  } finally {
    closeSync(fd);
  }
});

test("more than one window is read in one piece", () => {
  using memory = new KernelMemory();
  const line = readFileSync("/proc/kallsyms", "latin1")
    .split("\n")
    .find((text) => text.endsWith(" _text"));
  const code = BigInt(`0x${line?.split(" ")[0]}`);
  const whole = memory.read(code, 0x1_8000);
  expect(whole.subarray(0x1_7000)).toEqual(memory.read(code + 0x1_7000n, 0x1000));
});

test("no address is no memory", () => {
  using memory = new KernelMemory();
  expect(() => memory.read(0x1000n, 8)).toThrow(
    /cannot read the kernel's memory at 1000: bpf: E(?:FAULT|RANGE)/,
  );
});

test("fields and constants have the kernel's values", () => {
  const types = KernelTypes.ofKernel();
  expect(types.field("list_head.prev")).toEqual({ offset: 8, bit: undefined });
  expect(types.constant("PIDTYPE_PID")).toBe(0);
  expect(() => types.field("list_head.nothing")).toThrow(/cannot find/);
  expect(() => types.field("no_such_struct.x")).toThrow(/cannot find/);
});
