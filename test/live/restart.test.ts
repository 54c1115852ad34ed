import { testRoom } from "./suite.ts";

testRoom("restart");
