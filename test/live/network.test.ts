import { testRoom } from "./suite.ts";

testRoom("network");
