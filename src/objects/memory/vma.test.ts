import { expect, onTestFinished, test } from "vitest";
import { refuseLosses } from "../../log.ts";
import { parseSmaps } from "../../proc/smaps.ts";
import type { FrozenTask } from "../task/task.ts";
import { collectVmas } from "./vma.ts";

/** A block of smaps, as far as it is read. */
function smaps(flags: string): string {
  return `7f0000000000-7f0000100000 rw-p 00000000 00:00 0 \nSize: 1024 kB\nVmFlags: ${flags}\n`;
}

const task = { pid: 42 } as FrozenTask;
const noFiles = (): never => {
  throw new Error("no file is mapped");
};

test("collectVmas() refuses memory whose pages are still to come", () => {
  const plain = "rd wr mr mw me ac";
  expect(collectVmas(task, parseSmaps(smaps(plain)), noFiles)).toHaveLength(1);
  for (const flag of ["um", "ui"]) {
    expect(() => collectVmas(task, parseSmaps(smaps(`${plain} ${flag}`)), noFiles)).toThrow(
      "memory 7f0000000000-7f0000100000 of pid 42: it is filled on demand",
    );
  }
});

test("collectVmas() tells that a protection key is lost", () => {
  const told: string[] = [];
  refuseLosses((text) => {
    told.push(text);
    throw new Error(text);
  });
  onTestFinished(() => refuseLosses(undefined));
  const block = smaps("rd wr mr mw me ac").replace("VmFlags:", "ProtectionKey: 5\nVmFlags:");
  expect(() => collectVmas(task, parseSmaps(block), noFiles)).toThrow();
  expect(told).toEqual(["memory at 7f0000000000 of pid 42: its protection key 5 is not saved"]);
});
