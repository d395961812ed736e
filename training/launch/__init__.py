"""Training elsewhere: one container command, submitted as a Kubernetes Job, a Kubeflow TrainJob or a SageMaker training job."""
