//! The demo keeps what it promises.

use retrovisor_tests::{GuestImage, retrovisor};

#[test]
fn the_demo_notices_both_faults_and_heals_them() {
    let Some(_image) = GuestImage::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let ran = retrovisor(&dir.path().join("unused"), &["demo", "--dir", path]).ok();
    let text = std::fs::read_to_string(dir.path().join("summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["false_alarms"], 0, "{text}\n{}", ran.stdout);
    assert_eq!(summary["guest_complaints"], serde_json::json!([]), "{text}");
    assert_eq!(summary["undo_image_matches"], true, "{text}");
    let faults = summary["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{text}");
    for (fault, cause) in faults.iter().zip(["kill", "runaway"]) {
        assert!(fault["delay_checkpoints"].as_u64().unwrap() <= 4, "{text}");
        assert!(fault["first_bad"].as_u64() > fault["injected_at"].as_u64(), "{text}");
        assert!(fault["rolled_back_to"].as_u64() <= fault["injected_at"].as_u64(), "{text}");
        let counter = |when| fault[when].as_u64().unwrap();
        // On a busy machine the guest may have said no line since that checkpoint.
        assert!(counter("guest_counter_after") <= counter("guest_counter_before") + 10, "{text}");
        assert_eq!(fault["restored_image_matches"], true, "{text}");
        assert!(fault["top_cause"].as_str().unwrap().contains(cause), "{text}");
    }
    let report = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(report.contains("<svg") && report.contains("runaway") && !report.contains("<script src"));

    // What was recorded can be asked without a daemon.
    let store = dir.path().join("store");
    let verified = retrovisor(&store, &["verify", "--json"]).ok().json();
    assert_eq!(verified["damaged"], serde_json::json!([]));
    let tasks = retrovisor(&store, &["inspect", "demo", "tasks", "--at", "last-good"]).ok().stdout;
    assert!(tasks.contains("workload") && !tasks.contains("runaway"), "{tasks}");
    let odd = retrovisor(&store, &["anomalies", "demo"]).ok().stdout;
    assert!(odd.contains("bad") && odd.contains("Incident"), "{odd}");
    assert!(odd.lines().all(|line| line.chars().count() <= 200), "{odd}");
}
