import { expect, test } from "vitest";
import { differsByBreakpoints } from "./breakpoints.ts";

const PUSH = 0x55;
const NOP5 = [0x0f, 0x1f, 0x44, 0x00, 0x00];

function text(...middle: number[]): Buffer {
  return Buffer.from([PUSH, PUSH, ...middle, PUSH]);
}

test("differsByBreakpoints() takes int3 for a probe, wherever it is", () => {
  expect(differsByBreakpoints(text(0xcc), text(0x48))).toBe(true);
  expect(differsByBreakpoints(Buffer.of(0xcc, PUSH), Buffer.of(PUSH, PUSH))).toBe(true);
  expect(differsByBreakpoints(text(0x48), text(0x48))).toBe(true);
});

test("differsByBreakpoints() takes a call in the place of the long nop for a probe, and no other call", () => {
  expect(differsByBreakpoints(text(0xe8, 1, 2, 3, 4), text(...NOP5))).toBe(true);
  expect(differsByBreakpoints(text(0xe8, 1, 2, 3, 4), text(0x48, 1, 2, 3, 4))).toBe(false);
  expect(differsByBreakpoints(text(0xe8, 1), text(0x0f, 0x1f))).toBe(false);
});

test("differsByBreakpoints() keeps what a program has changed itself", () => {
  expect(differsByBreakpoints(text(0xcc, 0x90), text(0x48, 0x89))).toBe(false);
  expect(differsByBreakpoints(text(0x90), text(0x48))).toBe(false);
});
